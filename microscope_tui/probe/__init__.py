"""The probe: what a trainer imports to write a run log.

    from microscope_tui.probe import Adapter, MicroscopeCallback, attach

``RunRecorder`` needs no torch; ``attach`` and ``MicroscopeCallback`` are imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
