"""One folder a screen: what it shows, as text, and its keys (``screen.py``)."""
