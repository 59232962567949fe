"""Convert a Llama to a Mixture of Experts with latent attention; see :mod:`.__main__`."""
