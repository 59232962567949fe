"""Pure drawing: spans and numbers in, strips out. No widget is known here."""
