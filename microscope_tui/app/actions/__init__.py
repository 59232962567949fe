"""What the keys do: one file for each kind of action, and what every screen has in common."""
