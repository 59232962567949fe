"""The text that an upcycling is calibrated and judged on: one part each, never the same."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from moe_model.command import UsageError
from moe_model.tokenizer import Tokenizer

_WINDOW = 256
_HELD_OUT_SHARE = 0.1
_CHARACTERS_PER_TOKEN = 100
"""No tokenizer needs more on average: what lies beyond is not read."""


class Windows(NamedTuple):
    """Windows of S tokens, spread evenly over their part of the text."""

    calibration_NS: Tensor
    """From the first nine tenths."""
    held_out_NS: Tensor
    """From the last tenth."""


def read_text(path: Path | None) -> str:
    """The text in ``path``, or the language reference behind ``help()``; ``UsageError`` if none."""
    if path is None:
        try:
            topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
        except ModuleNotFoundError as error:
            raise UsageError(
                "this Python was built without pydoc_data, the text taken where --text names none: "
                "name a UTF-8 text file."
            ) from error
        return "\n\n".join(topics[name] for name in sorted(topics))
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--text {path} is not UTF-8 text (byte {error.start} is "
            f"0x{error.object[error.start]:02x}): convert it, or name another file."
        ) from error
    except OSError as error:
        raise UsageError(
            f"--text {path} cannot be read ({error.strerror}): name a UTF-8 text file."
        ) from error


def windows_of(text: str, tokenizer: Tokenizer, tokens: int, context: int) -> Windows:
    """About ``tokens`` tokens for calibration and as many to judge by, or what there is.

    Args:
        text: Of any length.
        tokenizer: That of the source.
        tokens: At most for each of the two.
        context: Longest window the source can read.

    Raises:
        UsageError: If the text is too short, or has characters that the tokenizer does not know.
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
            f"--text has {len(ids)} tokens and a window {length}: give at least "
            f"{int(length / _HELD_OUT_SHARE) + 1} tokens."
        )
    most = tokens // length
    return Windows(_spread(ids[:boundary], most, length), _spread(ids[boundary:], most, length))


def _spread(ids: Tensor, most: int, length: int) -> Tensor:
    windows = len(ids) // length
    rows = min(windows, most)
    start_N = torch.arange(rows) * windows // rows * length
    return ids[start_N[:, None] + torch.arange(length)]
