"""Where experts live: what uneven load costs on several ranks, and placements that even it out.

A placement is fitted to some steps of a run and scored on later ones. No terminal, no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
