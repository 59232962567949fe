"""Charts as data: which curves, on which scale, in which stack, above which time axis."""
