"""Measurements: one command, one table, with the machine named."""
