"""A watched run: its log followed, its history kept, its diagnosis up to date.

Shared by screens, snapshots and ``check``. No terminal, no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
