"""The screen ``help``."""
