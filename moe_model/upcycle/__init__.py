"""Convert a Llama to a Mixture of Experts with latent attention; see :mod:`.__main__`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
