"""The text of an upcycling: one part for calibration, another for measuring the loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from moe_model import Tokenizer, UsageError

_WINDOW = 256
_HELD_OUT_SHARE = 0.1
_CHARACTERS_PER_TOKEN = 100
"""Characters per token that are read; no tokenizer needs more on average."""


class Windows(NamedTuple):
    """Windows of S tokens, spread evenly over their part of the text."""

    calibration_NS: Tensor
    """From the first nine tenths."""
    held_out_NS: Tensor
    """From the last tenth."""


def windows_of(text: str, tokenizer: Tokenizer, tokens: int, context: int) -> Windows:
    """About ``tokens`` tokens for calibration and as many for measuring, if available.

    Args:
        text: Of any length.
        tokenizer: Tokenizer of the source.
        tokens: Most tokens of each part.
        context: Longest window the source can read.

    Raises:
        UsageError: If the text is too short, or has characters that the tokenizer cannot encode.
    """
    length = min(_WINDOW, context)
    if tokens < length:
        raise UsageError(
            f"--calibration-tokens {tokens} is less than a window of {length}: choose more, such "
            "as 8192."
        )
    try:
        ids = tokenizer.encode(text[: tokens * _CHARACTERS_PER_TOKEN])
    except ValueError as error:
        raise UsageError(f"--text: {error}") from error
    boundary = len(ids) - int(len(ids) * _HELD_OUT_SHARE)
    if len(ids) - boundary < length:
        raise UsageError(
            f"--text has {len(ids)} tokens, but a window has {length}: use at least "
            f"{int(length / _HELD_OUT_SHARE) + 1} tokens."
        )
    most = tokens // length
    return Windows(_spread(ids[:boundary], most, length), _spread(ids[boundary:], most, length))


def _spread(ids: Tensor, most: int, length: int) -> Tensor:
    windows = len(ids) // length
    rows = min(windows, most)
    start_N = torch.arange(rows) * windows // rows * length
    return ids[start_N[:, None] + torch.arange(length)]
