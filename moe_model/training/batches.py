"""Sequences in an order that depends on one number: how many have been drawn.

The training text is a ring, cut into windows of one sequence. Each epoch cuts it at another offset
and takes every window once, in an order that seed and epoch decide. Several texts are mixed in
rounds that take from each as many sequences as its weight, in an order that seed and round decide.
So the n-th sequence follows from the texts, the sequence length, the seed and n, however ranks and
batches divide them.
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
        """Copies from pinned memory are asynchronous."""
        return Batch(*(part.to(device, non_blocking=True) for part in self))

    def has_starts(self, length: int) -> bool:
        """Whether a document begins behind the first of ``length`` tokens."""
        return bool(self.starts_BN[:, 1:length].any())

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

    tokens: Tokens | Sequence[Tokens]
    """One text, or several that are mixed by ``weights``."""
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
    drawn: int = 0
    """Sequences drawn so far by all ranks together, the whole state between two batches."""

    def __post_init__(self) -> None:
        texts = [self.tokens] if isinstance(self.tokens, Tokens) else self.tokens
        self._texts = [Windows(text, self.seq_len, self.seed, self.ahead) for text in texts]

    def draw(self) -> StepBatches:
        """This rank's batches of the next step; ``drawn`` advances by the whole step."""
        B = self.batch_size
        of_all = B * self.world_size
        number_N = torch.arange(self.drawn, self.drawn + self.grad_accum * of_all)
        self.drawn += len(number_N)
        text_N, number_N = self._mixed(number_N)
        first_N = torch.empty_like(number_N)
        num_targets = [len(first_N) * self.seq_len] * (self.ahead + 1)
        for place, text in enumerate(self._texts):
            first_N[text_N == place] = own_N = text.firsts(number_N[text_N == place])
            num_targets = [
                n - h.count(own_N, self.seq_len)
                for n, h in zip(num_targets, text.hidden, strict=True)
            ]
        micro_batches = [
            self._batch(text_N[at : at + B], first_N[at : at + B])
            for at in range(self.rank * B, len(first_N), of_all)
        ]
        return StepBatches(micro_batches, tuple(num_targets))

    def _mixed(self, number_N: Tensor) -> tuple[Tensor, Tensor]:
        """The text of each sequence, and its number among those of this text."""
        if len(self.weights) == 1:
            return torch.zeros_like(number_N), number_N
        ends_T = torch.tensor(self.weights).cumsum(0)
        size = int(ends_T[-1])
        rounds = range(int(number_N[0]) // size, int(number_N[-1]) // size + 1)
        orders = [
            torch.randperm(size, generator=_seeded(f"{self.seed} round {at}")) for at in rounds
        ]
        place_N = torch.cat(orders)[number_N - rounds[0] * size]
        text_N = torch.searchsorted(ends_T, place_N, right=True)
        weight_N = torch.tensor(self.weights)[text_N]
        return text_N, number_N // size * weight_N + place_N - (ends_T[text_N] - weight_N)

    def _batch(self, text_B: Tensor, first_B: Tensor) -> Batch:
        shape = (len(first_B), self.seq_len + 1 + self.ahead)
        batch = Batch(torch.empty(shape, dtype=torch.int64), torch.empty(shape, dtype=torch.bool))
        for place, text in enumerate(self._texts):
            rows = _rows(text.tokens, first_B[text_B == place], shape[1])
            for whole, part in zip(batch, rows, strict=True):
                whole[text_B == place] = part
        return Batch(*(part.pin_memory() for part in batch)) if self.pin else batch


class Windows:
    """The sequences of one text."""

    def __init__(self, tokens: Tokens, seq_len: int, seed: int, ahead: int) -> None:
        self.tokens = tokens
        self.hidden = [HiddenTargets(tokens, places) for places in range(1, ahead + 2)]
        self._seq_len = seq_len
        self._seed = seed
        self._order: tuple[int | None, int, Tensor] = (None, 0, torch.empty(0))

    def firsts(self, number_N: Tensor) -> Tensor:
        """The first tokens of these sequences, int64."""
        windows = len(self.tokens) // self._seq_len
        first_N = torch.empty_like(number_N)
        for epoch in (number_N // windows).unique().tolist():
            if self._order[0] != epoch:
                # Hashed: neighbouring seeds and epochs share nothing.
                generator = _seeded(f"{self._seed} {epoch}")
                offset = int(torch.randint(self._seq_len, (), generator=generator))
                order = torch.randperm(windows, generator=generator, dtype=torch.int32)
                self._order = (epoch, offset, order)
            _, offset, order = self._order
            own_N = number_N // windows == epoch
            window_N = order[number_N[own_N] % windows].long()
            first_N[own_N] = (offset + window_N * self._seq_len) % len(self.tokens)
        return first_N


def _seeded(text: str) -> torch.Generator:
    mixed = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(mixed[:4], "little"))


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


def _rows(tokens: Tokens, first_B: Tensor, length: int) -> Batch:
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
    return Batch(tokens_BN, starts_BN)
