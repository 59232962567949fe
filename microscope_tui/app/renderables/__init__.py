"""Pure drawing: spans and numbers in, strips out. No widgets."""
