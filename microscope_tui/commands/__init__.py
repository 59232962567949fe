"""The commands; shared code is in ``console``."""
