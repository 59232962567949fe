"""Does a mixture of experts pay? See ``__main__.py``."""
