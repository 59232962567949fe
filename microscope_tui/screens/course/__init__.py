"""The screen ``course``."""
