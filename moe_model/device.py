"""Which device a command runs on."""

from __future__ import annotations

import os
from typing import Literal

import torch

from moe_model.command import UsageError

DeviceName = Literal["auto", "cpu", "cuda"]


def choose_device(name: str, *, deterministic: bool = False) -> torch.device:
    """``auto`` takes the GPU where there is one; ``UsageError`` for a GPU that is not there.

    ``deterministic`` asks for the same bits each time, before anything runs on a GPU: attention
    adds up its gradients in any order there otherwise, and cuBLAS may. A CPU needs none of this.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this torch finds no usable GPU: use --device cpu.")
    return torch.device(name)
