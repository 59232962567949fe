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


def cost_of_step(tokens: float, seconds: float) -> dict[str, float | None]:
    """Speed, time and memory of a step, as the run log names them."""
    return {
        "tokens_per_s": tokens / seconds if seconds > 0 else None,
        "step_time_s": seconds,
        "memory_bytes": memory_bytes(),
    }
