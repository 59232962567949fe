"""Text, the split into training and held-out part, and batches drawn from it.

Held out is the last tenth, in one piece: a model that has read the sentence before and after a
held-out sentence has not really been tested on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moe_model.command import UsageError
from moe_model.text import python_docs, read_text
from moe_model.tokenizer import CharTokenizer

PYTHON_DOCS = "python-docs"
HELD_OUT_SHARE = 0.1


def load_text(data: str) -> str:
    """The text named by ``--data``: ``python-docs``, or a UTF-8 file.

    Raises:
        UsageError: If it is no file, cannot be read, or is not text.
    """
    return python_docs("--data") if data == PYTHON_DOCS else read_text(Path(data), "--data")


@dataclass(frozen=True, slots=True)
class Corpus:
    """A text as token ids, split."""

    tokenizer: CharTokenizer
    """Made from the whole text, so that the held-out part has no unknown character."""
    training: Tensor
    """Token ids to learn from, int64."""
    held_out: Tensor
    """Token ids to be judged on, int64."""

    @classmethod
    def from_text(cls, text: str, seq_len: int) -> Corpus:
        """Split ``text``; ``UsageError`` where a part is shorter than a sequence and one token."""
        tokenizer = CharTokenizer.from_text(text) if text else None
        boundary = len(text) - int(len(text) * HELD_OUT_SHARE)
        needed = int((seq_len + 1) / HELD_OUT_SHARE) + 1
        if tokenizer is None or len(text) - boundary < seq_len + 1:
            raise UsageError(
                f"--data has {len(text)} characters and --seq-len is {seq_len}: give at least "
                f"{needed} characters, or a shorter --seq-len."
            )
        ids = tokenizer.encode(text)
        return cls(tokenizer, ids[:boundary], ids[boundary:])


class TrainingBatches:
    """Endless random windows of the training text, decided by a generator of their own."""

    def __init__(self, tokens: Tensor, batch_size: int, window: int, seed: int) -> None:
        """Draw ``batch_size`` windows of ``window`` tokens: a sequence and the tokens after it."""
        self.generator = torch.Generator().manual_seed(seed)
        self._tokens = tokens
        self._batch_size = batch_size
        self._window = torch.arange(window)

    def draw(self, device: torch.device) -> Tensor:
        """The next batch, ``(batch_size, window)``."""
        starts = len(self._tokens) - len(self._window) + 1
        start_B = torch.randint(starts, (self._batch_size,), generator=self.generator)
        return self._tokens[start_B[:, None] + self._window].to(device)


def held_out_batches(
    tokens: Tensor, batch_size: int, seq_len: int, most: int
) -> list[tuple[Tensor, Tensor]]:
    """The same windows every time: up to ``most`` batches, spread evenly and without overlap."""
    windows = (len(tokens) - 1) // seq_len
    rows = min(windows, most * batch_size)
    start_N = torch.arange(rows) * (windows * seq_len // rows)
    window = tokens[start_N[:, None] + torch.arange(seq_len + 1)]
    return [(part[:, :-1], part[:, 1:]) for part in torch.split(window, batch_size)]
