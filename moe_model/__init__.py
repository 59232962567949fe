"""A DeepSeek-V3-style Mixture-of-Experts language model and what its training loop calls.

Nothing is re-exported: ``import moe_model`` must not cost the second that torch takes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
