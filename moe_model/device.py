"""Which device a command runs on."""

from __future__ import annotations

from typing import Literal

import torch

from moe_model.command import UsageError

DeviceName = Literal["auto", "cpu", "cuda"]


def choose_device(name: str) -> torch.device:
    """``auto`` takes the GPU where there is one; ``UsageError`` for a GPU that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this torch finds no usable GPU: use --device cpu.")
    return torch.device(name)
