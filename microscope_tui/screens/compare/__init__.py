"""The screen ``compare``."""
