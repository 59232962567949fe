"""How evenly a placement spreads the counts of given steps over the ranks, and how sure that is.

Balancedness is the mean over the ranks divided by the busiest one, step by step: 1 is even. What
one waits for is the sum of the busiest ranks of all layers, so of a model it is Σ mean ÷ Σ max.
"""

import random
from collections.abc import Sequence
from itertools import accumulate

import msgspec

from microscope_tui.watch.cluster import Cluster, Placement, copies_of

Columns = Sequence[Sequence[float]]
"""For every expert of a layer its counts, step by step."""
Shares = Sequence[Sequence[float]]
"""Beside a placement: which part of its expert's tokens each copy gets."""
_RESAMPLES, _MOST_VALUES, _LEAST_STEPS = 2_000, 1_000, 32


def even_shares(placement: Placement, experts: int) -> Shares:
    """The share of an expert's tokens that each copy gets if all get as many, as EPLB assumes."""
    copies = copies_of(placement, experts)
    return [[1.0 / copies[expert] for expert in held] for held in placement]


def nearest_shares(placement: Placement, cluster: Cluster) -> Shares:
    """Every rank sends as much, to the copies on itself, else on its node, else to all evenly."""
    homes: dict[int, list[int]] = {}
    for rank, held in enumerate(placement):
        for expert in held:
            homes.setdefault(expert, []).append(rank)
    per_node = cluster.ranks // cluster.nodes
    parts: dict[tuple[int, int], float] = {}
    for expert, ranks in homes.items():
        for sender in range(cluster.ranks):
            near = [rank for rank in ranks if rank == sender]
            near = near or [rank for rank in ranks if rank // per_node == sender // per_node]
            for rank in near or ranks:
                part = 1.0 / cluster.ranks / len(near or ranks)
                parts[expert, rank] = parts.get((expert, rank), 0.0) + part
    return [[parts[e, rank] / held.count(e) for e in held] for rank, held in enumerate(placement)]


def busiest(columns: Columns, placement: Placement, shares: Shares) -> list[float]:
    """The load of the busiest rank in every step."""
    ranks = []
    for held, parts in zip(placement, shares, strict=True):
        pairs = zip(held, parts, strict=True)
        series = [_scaled(columns[expert], part) for expert, part in pairs]
        total: list[float] = list(map(sum, zip(*series, strict=True)))
        ranks.append(total or [0.0] * len(columns[0]))
    return list(map(max, zip(*ranks, strict=True)))


def _scaled(column: Sequence[float], part: float) -> Sequence[float]:
    if part == 1.0:
        return column  # most experts have one copy
    return [part * count for count in column]


class Tally:
    """Sums over layers of the mean and the busiest rank, for every step."""

    def __init__(self, steps: int) -> None:
        self.means, self.maxima = [0.0] * steps, [0.0] * steps

    def place(
        self, columns: Columns, placement: Placement, shares: Shares | None = None
    ) -> float | None:
        """Add a layer with these counts and return its balancedness, as ``add``.

        Args:
            columns: Counts by expert, one number per step each.
            placement: The experts of every rank.
            shares: What part of its expert's tokens each copy gets; by default even.
        """
        if shares is None:
            shares = even_shares(placement, len(columns))
        means = [sum(step) / len(placement) for step in zip(*columns, strict=True)]
        return self.add(means, busiest(columns, placement, shares))

    def add(self, means: Sequence[float], maxima: Sequence[float]) -> float | None:
        """Add a layer; its balancedness, a mean over the steps in which it counted anything."""
        self.means = [a + b for a, b in zip(self.means, means, strict=True)]
        self.maxima = [a + b for a, b in zip(self.maxima, maxima, strict=True)]
        return _mean([a / b for a, b in zip(means, maxima, strict=True) if b > 0])

    def steps(self) -> list[float | None]:
        """Balancedness of every step, 0 … 1; ``None`` for a step without tokens."""
        return list(map(_ratio, self.means, self.maxima))

    @property
    def balancedness(self) -> float:
        """Mean over the steps that counted anything; 1 if none did."""
        return _mean([value for value in self.steps() if value is not None]) or 1.0

    @property
    def ratio(self) -> float:
        """Mean over the steps of Σ max ÷ Σ mean, both over layers; 1 if nothing was counted."""
        return _mean([1.0 / value for value in self.steps() if value is not None]) or 1.0


def _mean(values: Sequence[float]) -> float | None:
    return _ratio(sum(values), len(values))


def _ratio(part: float, whole: float) -> float | None:
    if whole <= 0:
        return None
    return part / whole


class Gain(msgspec.Struct, frozen=True):
    """With its 95 % interval."""

    mean: float
    low: float | None
    """``None``: too few steps for an interval."""
    high: float | None
    block: int
    """Steps of a block of the bootstrap."""


def gain_of(gains: Sequence[float]) -> Gain:
    """The mean of a series whose neighbours are alike: a circular block bootstrap.

    Blocks are drawn with replacement (Politis and Romano 1992), with a fixed seed. They are as long
    as three correlation times, but √n steps at least and a quarter of all steps at most. With so
    few blocks the interval is too narrow, and is widened like Student's t against the normal.
    """
    number = len(gains)
    mean = _mean(gains) or 0.0
    size = -(-number // _MOST_VALUES) or 1  # a long series is one of the means of short pieces
    pieces = [sum(gains[at : at + size]) / size for at in range(0, number - size + 1, size)]
    count = len(pieces)
    if count < _LEAST_STEPS:
        return Gain(mean, None, None, 1)
    block = min(count // 4, max(round(count**0.5), round(3 * _correlation_time(pieces))))
    sums = [0.0, *accumulate([*pieces, *pieces[:block]])]
    blocks = [sums[at + block] - sums[at] for at in range(count)]
    drawn = random.Random(0)
    number = -(-count // block)
    means = sorted(sum(drawn.choices(blocks, k=number)) for _ in range(_RESAMPLES))
    ends = (means[round(q * (_RESAMPLES - 1))] / (number * block) for q in (0.025, 0.975))
    free = count / block - 1
    wider = (1 + 1.21 / free + 1.44 / free**2) * (1 + 1 / free) ** 0.5
    low, high = (mean + wider * (end - mean) for end in ends)
    return Gain(mean, low, high, block * size)


def _correlation_time(values: Sequence[float]) -> float:
    """1 + 2 Σ of the autocorrelations, up to the first that is not positive."""
    mean = sum(values) / len(values)
    away = [value - mean for value in values]
    total = sum(x * x for x in away)
    time = 1.0
    for lag in range(1, len(away) // 4):
        together = sum(x * y for x, y in zip(away, away[lag:], strict=False))
        if together <= 0:
            break
        time += 2 * together / total
    return time
