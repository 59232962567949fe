"""The screen ``alerts``."""
