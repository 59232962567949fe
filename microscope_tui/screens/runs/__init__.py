"""The screen ``runs``."""
