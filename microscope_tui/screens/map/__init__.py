"""The screen ``map``."""
