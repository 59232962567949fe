"""One file a rule; ``catalogue`` lists them."""
