"""The commands that print and exit. What they share is in ``console``."""
