"""Texts as windows: what the model reads at once, and the batches of them.

A text that is longer than a window is read in several, each without what came before it. Windows
stay in the order of the text, so that a probe that is interrupted holds its beginning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from microscope_tui.probe.pieces import Pieces
from microscope_tui.probe.texts import BadText, Slice, read_text

_SHOWN = 20
"""Characters that a note lists."""


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens that are read together."""

    ids: list[int]
    texts: list[bytes]
    """Of each token; empty for those that the tokenizer puts before a text."""
    slices: list[int]
    """Number of the slice of each token."""
    begins: bool = True
    """It is the beginning of a text."""


@dataclass(frozen=True, slots=True)
class Reading:
    """All windows of a probe, and what has to be said about them."""

    windows: list[Window]
    notes: list[str]


def read_windows(slices: Sequence[Slice], pieces: Pieces, length: int, tokens: int) -> Reading:
    """Read and cut the texts; characters that the model has no token for are left out, and said.

    Args:
        length: Tokens of a window at most, those that the tokenizer puts before a text included.
        tokens: At most this many in all, shared evenly between the slices.

    Raises:
        BadText: a text is unreadable, or there is none at all.
    """
    found, split = Reading([], []), 0
    skipped: list[str] = []
    strangers: Counter[str] = Counter()
    room = length - len(pieces.prefix)
    if room < 1:
        raise BadText(f"a window of {length} has no room for text: choose a larger --window")
    for number, one in enumerate(slices):
        left = max(1, tokens // len(slices))
        for path in one.files:
            try:
                ids, texts = _encode(path, pieces, left, strangers)
            except BadText as error:
                if path in one.named:
                    raise
                skipped.append(str(error))
                continue
            left -= len(ids)
            split += len(ids) > room
            for start in range(0, len(ids), room):
                part = slice(start, start + room)
                found.windows.append(_window(pieces, ids[part], texts[part], number, start == 0))
            if left <= 0:
                break
    if not found.windows and strangers:
        raise BadText(f"{_listed(strangers)} are all there is, and the model has no token for them")
    if not found.windows:
        names = ", ".join(one.name for one in slices)
        raise BadText(f"{names}: no text to read; name UTF-8 files that are not empty")
    if split:
        found.notes.append(
            f"texts longer than a window of {length:,} tokens: {split:,}; read in several windows, "
            "each without what came before"
        )
    if strangers:
        found.notes.append(f"left out, as the model has no token for them: {_listed(strangers)}")
    if skipped:
        found.notes.append(f"files left out: {len(skipped):,}; the first: {skipped[0]}")
    return found


def _window(
    pieces: Pieces, ids: list[int], texts: list[bytes], number: int, begins: bool
) -> Window:
    before = list(pieces.prefix)
    ids, texts = before + ids, [b""] * len(before) + texts
    return Window(ids, texts, [number] * len(ids), begins)


def _listed(characters: Counter[str]) -> str:
    """How many there are, and the most frequent ones."""
    shown = "".join(one for one, _ in characters.most_common(_SHOWN))
    return f"{characters.total():,} characters {shown!r}"


def _encode(
    path: Path, pieces: Pieces, most: int, strangers: Counter[str]
) -> tuple[list[int], list[bytes]]:
    """The first ``most`` tokens of a file; no more of it is read than they need."""
    ids: list[int] = []
    texts: list[bytes] = []
    for text in read_text(path, piece_bytes=min(1 << 20, max(1 << 12, most * 8))):
        if unknown := pieces.strangers(text):
            strangers.update(one for one in text if one in unknown)
            text = "".join(one for one in text if one not in unknown)
        try:
            more_ids, more_texts = pieces.encode(text)
        except ValueError as error:
            raise BadText(f"{path}: {error}") from None
        ids += more_ids
        texts += more_texts
        if len(ids) >= most:
            return ids[:most], texts[:most]
    return ids, texts


def continued(
    windows: Sequence[Window],
    num_slices: int,
    pieces: Pieces,
    write: Callable[[list[int], int], list[int]],
    length: int,
    most: int,
) -> Iterator[Window]:
    """The beginning of each text as a prompt, and what the model writes after it.

    Args:
        num_slices: What is written after slice ``n`` is slice ``n + num_slices``.
        write: Continues ids by at most so many tokens.
        length: Tokens of a window; a prompt is cut to half of it.
        most: Tokens to write after each prompt.
    """
    for window in filter(lambda one: one.begins, windows):
        prompt = slice(0, max(1, length // 2))
        ids = window.ids[prompt]
        written = write(ids, min(most, length - len(ids)))
        number = window.slices[0]
        yield Window(
            ids + written,
            window.texts[prompt] + [pieces.of_id(one) for one in written],
            [number] * len(ids) + [number + num_slices] * len(written),
        )


def batches(windows: Sequence[Window], size: int) -> Iterator[list[Window]]:
    """Consecutive windows, ``size`` at a time."""
    for start in range(0, len(windows), size):
        yield list(windows[start : start + size])


def tensors(batch: Sequence[Window], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Ids ``[B, S]``, padded on the right, and which are real; None where all are."""
    longest = max(len(window.ids) for window in batch)
    ids_BS = torch.tensor([one.ids + [one.ids[0]] * (longest - len(one.ids)) for one in batch])
    if all(len(window.ids) == longest for window in batch):
        return ids_BS.to(device), None
    lengths_B = torch.tensor([len(window.ids) for window in batch])
    return ids_BS.to(device), (torch.arange(longest) < lengths_B[:, None]).to(device)
