"""A watched run: its log followed, its history kept, its diagnosis up to date.

Shared by screens, snapshots and ``check``. No terminal, no torch.
"""
