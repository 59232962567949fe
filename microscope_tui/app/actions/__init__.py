"""Actions of the keys, one file per kind, and the base class of all screens."""
