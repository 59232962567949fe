"""Screen content as lines of text with roles: the app colours them, snapshot prints them.

No terminals, colours or keys here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
