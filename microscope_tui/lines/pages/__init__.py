"""The other screens and the list of runs, one file each, as lines."""
