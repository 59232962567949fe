"""Strict validation of the log format, line by line, for ``check --format-only``."""
