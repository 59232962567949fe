"""Sequences in an order that depends on one number: how many have been drawn.

A text is a ring, cut into windows of one sequence. Each epoch cuts it at another offset and takes
every window once, in an order that seed and epoch decide; a round takes as many sequences of each
text as it has weight, in an order that seed and round decide. So ranks and batches only divide the
n-th sequences among them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from moe_model.training.corpus import Tokens

IGNORED = -100
"""The target that ``cross_entropy`` ignores by default."""


class Batch(NamedTuple):
    """Sequences of S tokens, and the 1 + ahead tokens behind each that it predicts."""

    tokens_BN: Tensor
    """``(B, S + 1 + ahead)``, int64."""
    starts_BN: Tensor
    """The same shape, bool: a document begins at this token."""

    def to(self, device: torch.device) -> Batch:
        """On ``device``; the copy of pinned memory is asynchronous."""
        return Batch(*(part.to(device, non_blocking=True) for part in self))

    def targets(self, ahead: int, length: int) -> Tensor:
        """``(B, length)``: the tokens ``ahead`` positions later, where 1 is the next token; -100
        where a document begins in between, which is not predictable."""
        beyond_BS = self.starts_BN[:, 1 : ahead + length].unfold(1, ahead, 1).any(-1)
        return self.tokens_BN[:, ahead : ahead + length].masked_fill(beyond_BS, IGNORED)

    def all_targets(self, length: int, *, ahead: bool) -> list[Tensor]:
        """Targets of the next token and, if ``ahead``, of every further depth there are tokens for.

        See :meth:`targets`; ``length`` is that of the sequences.
        """
        most = self.tokens_BN.shape[1] - length if ahead else 1
        return [self.targets(places, length) for places in range(1, most + 1)]


class StepBatches(NamedTuple):
    """What one rank computes in an optimizer step, and what all ranks together predict."""

    micro_batches: list[Batch]
    """As many as gradients are accumulated over."""
    num_targets: tuple[int, ...]
    """For 1, 2, … tokens ahead: targets other than -100 in the whole step, on all ranks."""


@dataclass
class TrainingBatches:
    """Endless batches of one rank; all fields but ``rank`` must be equal on all ranks."""

    texts: Sequence[Tokens]
    batch_size: int
    """Sequences in a micro-batch of one rank."""
    seq_len: int
    seed: int
    """Of the order; global random generators are neither read nor advanced."""
    grad_accum: int = 1
    ahead: int = 0
    rank: int = 0
    world_size: int = 1
    pin: bool = False
    """Put batches into pinned memory."""
    weights: Sequence[int] = (1,)
    """Sequences of each text in a round."""
    drawn: int = 0
    """Sequences drawn so far by all ranks together: the whole state."""

    def __post_init__(self) -> None:
        self._length = self.seq_len + 1 + self.ahead
        self._round = [text for text, weight in enumerate(self.weights) for _ in range(weight)]
        self._orders: dict[str, tuple[int, int, Tensor]] = {}

    def draw(self) -> StepBatches:
        """This rank's batches of the next step; ``drawn`` advances by the whole step."""
        B = self.batch_size
        until = self.drawn + self.grad_accum * B * self.world_size
        places = [self._place(sequence) for sequence in range(self.drawn, until)]
        self.drawn = until
        micro_batches = []
        num_targets = [0] * (self.ahead + 1)
        for number, at in enumerate(range(0, len(places), B)):
            part = places[at : at + B]
            starts_BN = _starts(part, self._length)
            any_tokens = Batch(starts_BN.long(), starts_BN)
            for ahead, targets_BS in enumerate(any_tokens.all_targets(self.seq_len, ahead=True)):
                num_targets[ahead] += int((targets_BS != IGNORED).sum())
            if number % self.world_size == self.rank:
                batch = Batch(_ids(part, self._length), starts_BN)
                micro_batches.append(Batch(*(x.pin_memory() for x in batch)) if self.pin else batch)
        return StepBatches(micro_batches, tuple(num_targets))

    def _place(self, sequence: int) -> tuple[Tokens, int]:
        text = 0
        size = len(self._round)
        if size > 1:
            number, place = divmod(sequence, size)
            card = int(self._order(" round", number, size)[1][place])
            text = self._round[card]
            sequence = number * self.weights[text] + card - self._round.index(text)
        length = len(self.texts[text])
        epoch, place = divmod(sequence, length // self.seq_len)
        offset, order = self._order(f" {text}" if text else "", epoch, length // self.seq_len)
        return self.texts[text], (offset + int(order[place]) * self.seq_len) % length

    def _order(self, of: str, number: int, size: int) -> tuple[int, Tensor]:
        if of not in self._orders or self._orders[of][0] != number:
            # Hashed: neighbouring seeds and epochs share nothing.
            mixed = hashlib.sha256(f"{self.seed} {number}{of}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(mixed[:4], "little"))
            offset = int(torch.randint(self.seq_len, (), generator=generator))
            order = torch.randperm(size, generator=generator, dtype=torch.int32)
            self._orders[of] = (number, offset, order)
        return self._orders[of][1:]


def held_out_batches(tokens: Tokens, batch_size: int, seq_len: int, most: int) -> list[Batch]:
    """Up to ``most`` sequences of ``seq_len`` tokens, spread evenly and without overlap.

    They are the same every time. The last batch may be smaller than ``batch_size``.
    """
    windows = (len(tokens) - 1) // seq_len
    rows = min(windows, most)
    places = [(tokens, row * (windows * seq_len // rows)) for row in range(rows)]
    batches = []
    for at in range(0, rows, batch_size):
        part = places[at : at + batch_size]
        batches.append(Batch(_ids(part, seq_len + 1), _starts(part, seq_len + 1)))
    return batches


def _ids(places: Sequence[tuple[Tokens, int]], length: int) -> Tensor:
    """Windows of ``length`` tokens from these on, int64; one that reaches the end wraps around."""
    rows = []
    for tokens, first in places:
        # Slices, because not every build can index narrow unsigned integers.
        part = tokens.ids[first : first + length].long()
        rows.append(torch.cat((part, tokens.ids[: length - len(part)].long())))
    return torch.stack(rows)


def _starts(places: Sequence[tuple[Tokens, int]], length: int) -> Tensor:
    starts_BN = torch.zeros(len(places), length, dtype=torch.bool)
    for starts_N, (tokens, first) in zip(starts_BN, places, strict=True):
        bounds = torch.tensor([first, first + length, first + length - len(tokens)])
        low, high, wrapped = torch.searchsorted(tokens.starts, bounds).tolist()
        starts_N[tokens.starts[low:high] - first] = True
        starts_N[tokens.starts[:wrapped] + len(tokens) - first] = True
    return starts_BN
