"""The commands; what they share is in ``console``, ``options`` and ``config``."""
