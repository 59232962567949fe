"""The environment variables that a launcher such as torchrun sets."""

from __future__ import annotations

import os

import torch

from moe_model import UsageError


def launched() -> bool:
    """Whether this process is one of several, started by torchrun or by a recipe that sets the same
    environment variables."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_first() -> bool:
    """Whether this is rank 0, also where the ranks could not meet."""
    return os.environ.get("RANK", "0") == "0"


def own_rank() -> str:
    """This process in an error message, also where the ranks could not meet."""
    return f"rank {os.environ.get('RANK', '0')} of {os.environ.get('WORLD_SIZE', '1')}"


def own_gpu(local_rank: int) -> torch.device:
    gpus = torch.cuda.device_count()
    if local_rank >= gpus:
        raise UsageError(
            f"LOCAL_RANK={local_rank} but this process sees {gpus} GPUs: start at most that many "
            "processes per machine (--nproc-per-node), set LOCAL_RANK=0 if each process sees only "
            "its own GPU, or train with --device cpu."
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def number_of(name: str) -> int:
    text = os.environ.get(name, "0")
    if not text.isdecimal():
        raise UsageError(f"{name}={text!r} is not a number: start with torchrun, or correct it.")
    return int(text)
