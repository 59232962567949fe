"""The screen ``expert``."""
