"""A finished model: the experts of every token, coverage, and where two probes differ.

    from microscope_tui.extensions.anatomy import Routing

reads a file of a probe or of routed experts with all checks.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
