"""The sensor: what a trainer imports to write a run log."""
