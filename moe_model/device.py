"""Choose the device of a command."""

from __future__ import annotations

import os
from typing import Literal

import torch

from moe_model.command import UsageError

DeviceName = Literal["auto", "cpu", "cuda"]


def choose_device(name: str, *, deterministic: bool = False) -> torch.device:
    """Return the device; ``auto`` is a GPU if there is one. ``UsageError`` for a missing GPU.

    ``deterministic`` enables deterministic operations, which must happen before anything runs on a
    GPU: attention sums its gradients in any order there otherwise, and cuBLAS may. A CPU is
    deterministic anyway.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no usable GPU: use --device cpu.")
    return torch.device(name)
