"""What a step costs on this machine."""

from __future__ import annotations

import resource
import sys

import torch


def memory_bytes() -> int:
    """Peak memory of the device, else of the process; without waiting for anything."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
