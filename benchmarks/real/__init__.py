"""Real training runs, small enough for two CPU cores, and what brute force finds in them."""
