"""The run log: the only interface between a trainer and the microscope.

``LOGS/<run>/metrics.jsonl``: one run per file, one JSON object per line, append-only. Standard
library and msgspec only.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
