"""What the microscope says without a terminal: snapshots and ``check``.

The rows that the screen shows are built here too, as plain spans of text with a role each, so
that a snapshot and the live screen are the same picture.
"""
