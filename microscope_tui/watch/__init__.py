"""A run under the microscope: its log followed, its history kept, its diagnosis up to date.

What a screen, a snapshot and ``check`` share. No terminal, no torch.
"""
