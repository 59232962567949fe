"""Every Mixture-of-Experts family of the installed transformers, built tiny, with random weights."""
