"""The model that is probed, whoever wrote it: how to run it and how to read its tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from microscope_tui.probe.pieces import Pieces


class CannotProbe(ValueError):
    """The model cannot be probed; the message says why and what to do, in one line."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model in evaluation mode."""

    name: str
    model: nn.Module
    pieces: Pieces
    context: int | None
    """Tokens that it reads at most; None where its configuration does not say."""
    forward: Callable[[Tensor, Tensor | None], Tensor | None]
    """``forward(ids_BS, real_BS)`` runs the whole model; next-token logits ``[B, S, V]``, None
    where it has none."""
    write: Callable[[list[int], int], list[int]]
    """``write(ids, most)`` continues ids, with a fixed seed."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.model.parameters()).device


def choose_device(name: str) -> torch.device:
    """The device of ``--device``; ``auto`` is a GPU if there is one.

    Raises:
        CannotProbe: there is no usable GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise CannotProbe("--device cuda: torch finds no usable GPU; choose --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def out_of_memory(error: BaseException) -> bool:
    """The error says that memory is short: of the GPU, or of the machine."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and ("out of memory" in text or "can't allocate memory" in text or "not enough mem" in text)
    )
