"""One file a rule; ``catalogue.py`` finds them here."""
