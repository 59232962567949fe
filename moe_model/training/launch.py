"""What a launcher such as torchrun told this process, in its environment."""

from __future__ import annotations

import os

import torch

from moe_model.command import UsageError


def launched() -> bool:
    """Whether something started this process as one of several: torchrun, or a recipe that sets
    the same environment variables."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_first() -> bool:
    """Whether this process speaks for all, also where they could not meet."""
    return os.environ.get("RANK", "0") == "0"


def own_rank() -> str:
    """Which process this is, for a line of its own, also where the ranks could not meet."""
    return f"rank {os.environ.get('RANK', '0')} of {os.environ.get('WORLD_SIZE', '1')}"


def own_gpu(local_rank: int) -> torch.device:
    gpus = torch.cuda.device_count()
    if local_rank >= gpus:
        raise UsageError(
            f"LOCAL_RANK={local_rank} and this process sees {gpus} GPUs: start at most as many "
            "processes on a machine (--nproc-per-node), set LOCAL_RANK=0 where each sees its own "
            "alone, or train with --device cpu."
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def number_of(name: str) -> int:
    text = os.environ.get(name, "0")
    if not text.isdecimal():
        raise UsageError(f"{name}={text!r} is no number: start with torchrun, or correct it.")
    return int(text)
