"""The judgement: router records in, episodes with Verdict / Why / Next out.

``engine.Diagnosis`` is the entrance. It streams, one record at a time.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
