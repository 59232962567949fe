"""``routing.bin``: what every router chose for every token of a text, readable without torch.

``docs/routing-file.md`` is the page of the format.
"""
