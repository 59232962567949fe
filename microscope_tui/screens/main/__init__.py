"""The screen ``main``."""
