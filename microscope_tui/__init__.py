"""MoE Microscope: watch the routers of a Mixture-of-Experts model while it trains.

Nothing is re-exported: ``import microscope_tui`` loads neither Textual nor torch.
"""
