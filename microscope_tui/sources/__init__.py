"""Readers of runs and dumps that other tools wrote, one file per format.

A reader turns what it finds into records of the run log; everything above reads only those.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
