"""The letter of the format: what ``check --format-only`` holds a log against, line by line."""
