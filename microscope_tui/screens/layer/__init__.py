"""The screen ``layer``."""
