"""A DeepSeek-V3-style Mixture-of-Experts language model and what its training loop calls.

Nothing is re-exported: ``import moe_model`` must not cost the second that torch takes.
"""
