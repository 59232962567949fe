"""What screens are built from: the session, keys, base classes, rows, the palette."""
