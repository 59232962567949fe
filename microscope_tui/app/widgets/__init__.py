"""Widgets that show what the renderables draw, and repaint no more than what changed."""
