"""Every MoE family of the installed transformers: built tiny, trained for a step, counted."""
