"""Synthetic runs with known ground truth: for the demo, the tests and the benchmarks.

A scenario is a generator of steps; ``write.write_run`` turns it into a run log.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
