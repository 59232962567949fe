"""``routing.bin``: what every router chose for every token of a text, readable without torch.

``docs/routing-file.md`` is the page of the format.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
