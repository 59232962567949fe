"""Sequences in an order that depends on one number: how many have been drawn.

The training text is a ring, cut into windows of one sequence. Each epoch cuts it at another offset
and takes every window once, in an order that seed and epoch decide. So the n-th sequence follows
from the text, the sequence length, the seed and n, however ranks and batches divide them.
"""

from __future__ import annotations

import hashlib
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
        """Copies from pinned memory are asynchronous."""
        return Batch(*(part.to(device, non_blocking=True) for part in self))

    def targets(self, ahead: int, length: int) -> Tensor:
        """``(B, length)``: the tokens ``ahead`` positions later, where 1 is the next token; -100
        where a document begins in between, which is not predictable."""
        places = [slice(place, place + length) for place in range(1, ahead + 1)]
        beyond_BS = torch.stack([self.starts_BN[:, place] for place in places]).any(0)
        return self.tokens_BN[:, places[-1]].masked_fill(beyond_BS, IGNORED)

    def all_targets(self, length: int, *, ahead: bool) -> list[Tensor]:
        """:meth:`targets` of the next token, and ``ahead`` of every depth there are tokens for."""
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

    tokens: Tokens
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
    drawn: int = 0
    """Sequences drawn so far by all ranks together, the whole state between two batches."""

    def __post_init__(self) -> None:
        self._windows = len(self.tokens) // self.seq_len
        self._hidden = [HiddenTargets(self.tokens, places) for places in range(1, self.ahead + 2)]
        self._order: tuple[int | None, Tensor] = (None, torch.empty(0))

    def draw(self) -> StepBatches:
        """This rank's batches of the next step; ``drawn`` advances by the whole step."""
        B = self.batch_size
        in_a_round = B * self.world_size
        first_N = self._firsts(self.drawn, self.grad_accum * in_a_round)
        self.drawn += len(first_N)
        length = self.seq_len + 1 + self.ahead
        micro_batches = [
            _rows(self.tokens, first_N[at : at + B], length, self.pin)
            for at in range(self.rank * B, len(first_N), in_a_round)
        ]
        hidden = (part.count(first_N, self.seq_len) for part in self._hidden)
        all_targets = len(first_N) * self.seq_len
        return StepBatches(micro_batches, tuple(all_targets - some for some in hidden))

    def _firsts(self, sequence: int, many: int) -> Tensor:
        """The first tokens of ``many`` sequences from the ``sequence``-th on, int64."""
        parts = []
        while many > 0:
            epoch, place = divmod(sequence, self._windows)
            part = self._firsts_of(epoch)[place : place + many]
            parts.append(part)
            sequence, many = sequence + len(part), many - len(part)
        return torch.cat(parts)

    def _firsts_of(self, epoch: int) -> Tensor:
        """The first tokens of every sequence of ``epoch``, ``(windows,)``."""
        if self._order[0] != epoch:
            # Hashed: neighbouring seeds and epochs share nothing.
            mixed = hashlib.sha256(f"{self.seed} {epoch}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(mixed[:4], "little"))
            offset = torch.randint(self.seq_len, (), generator=generator)
            window_N = torch.randperm(self._windows, generator=generator)
            self._order = (epoch, (offset + window_N * self.seq_len) % len(self.tokens))
        return self._order[1]


class HiddenTargets:
    """How many tokens cannot be predicted because a document starts too soon after them: its last
    ``places``, for targets so many tokens ahead."""

    def __init__(self, tokens: Tokens, places: int) -> None:
        ends_D = torch.cat((tokens.starts[1:], torch.tensor([len(tokens)])))
        hidden_D = (ends_D - tokens.starts).clamp(max=places)
        self._starts_D = tokens.starts
        self._from_D = ends_D - hidden_D
        self._before_D = hidden_D.cumsum(0) - hidden_D
        self._tokens = len(tokens)

    def count(self, first_N: Tensor, length: int) -> int:
        """How many there are in the windows of ``length`` that begin at ``first_N``, on a ring."""
        end_N = first_N + length
        over_N = end_N > self._tokens
        counted = self._below(end_N.where(~over_N, end_N - self._tokens)) - self._below(first_N)
        all_of_them = self._below(torch.tensor([self._tokens]))
        return int((counted + over_N * all_of_them).sum())

    def _below(self, token_N: Tensor) -> Tensor:
        document_N = torch.searchsorted(self._starts_D, token_N, right=True) - 1
        here_N = (token_N - self._from_D[document_N]).clamp(min=0)
        return self._before_D[document_N] + here_N


def held_out_batches(tokens: Tokens, batch_size: int, seq_len: int, most: int) -> list[Batch]:
    """The same sequences every time: up to ``most``, spread evenly and without overlap."""
    windows = (len(tokens) - 1) // seq_len
    rows = min(windows, most)
    first_N = torch.arange(rows) * (windows * seq_len // rows)
    return [_rows(tokens, first_B, seq_len + 1) for first_B in torch.split(first_N, batch_size)]


def _rows(tokens: Tokens, first_B: Tensor, length: int, pin: bool = False) -> Batch:
    """Windows of ``length`` tokens; one that reaches the end wraps around."""
    place_BN = (first_B[:, None] + torch.arange(length)) % len(tokens)
    document_BN = torch.searchsorted(tokens.starts, place_BN, right=True) - 1
    starts_BN = tokens.starts[document_BN] == place_BN
    tokens_BN = torch.empty_like(place_BN)
    for row_N, first in zip(tokens_BN, first_B.tolist(), strict=True):
        # Slices, because not every build can index narrow unsigned integers.
        part_N = tokens.ids[first : first + length]
        row_N[: len(part_N)] = part_N
        row_N[len(part_N) :] = tokens.ids[: length - len(part_N)]
    batch = Batch(tokens_BN, starts_BN)
    return Batch(*(part.pin_memory() for part in batch)) if pin else batch
