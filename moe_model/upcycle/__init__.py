"""A Llama becomes a Mixture of Experts with latent attention; see :mod:`.command`."""
