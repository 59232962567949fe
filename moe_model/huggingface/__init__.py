"""Import from and export to Hugging Face: DeepSeek-V3, DeepSeek-V2, GLM-4.7-Flash."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
