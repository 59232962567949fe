"""Features that the rest runs without: each folder has its screens, commands and readers."""
