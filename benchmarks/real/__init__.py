"""Real training runs, small enough for two CPU cores, and what brute force says about them."""
