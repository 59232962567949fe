"""One step's sums of all routers as one vector: summed over ranks at once, copied to the host once.

The layout is agreed on at the first logged step and never changes: a rank that does not contribute
(its probe failed, or it sees the tokens of another rank) adds zeros of the same length.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from microscope_tui.probe.ranks import Ranks
from microscope_tui.probe.sites import Site
from microscope_tui.probe.tally import SUMS, Tally

Values = list[float | None]
EXTRA = ("failed", "passes", "stop", "loss", "losses", "aux", "auxes")
"""What comes along: how many ranks failed, forward passes, whether rank 0 wants the training to
stop, sums of losses and their numbers."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the log: a site, and which pass through it where there are several."""

    place: int
    number: int
    name: str


@dataclass(frozen=True, slots=True)
class StepSums:
    """What all ranks saw in a step, as plain numbers; a list entry per row."""

    extra: dict[str, float]
    tokens: list[int]
    counts: list[list[int]]
    unrouted: list[int]
    sums: list[dict[str, float]]
    mean_entropy: Values
    max_logit: list[float]
    grad_squares: Values
    biases: list[list[float]]
    weights: list[list[float]]
    norms: list[list[float]]


class Layout:
    """The rows of the log, and their places in the vector."""

    def __init__(self, sites: Sequence[Site], passes: Sequence[int], top_k: Sequence[int]) -> None:
        self.sites, self.top_k = sites, list(top_k)
        self.rows: list[Row] = []
        for place, (site, number) in enumerate(zip(sites, passes, strict=True)):
            for n in range(max(1, number)):
                name = f"{site.name}#{n + 1}" if number > 1 else site.name
                self.rows.append(Row(place, n, name))

    @classmethod
    def agreed(cls, sites: Sequence[Site], tallies: Sequence[Tally], ranks: Ranks) -> Layout:
        """The layout that all ranks share, from what each saw in its first step."""
        passes = torch.zeros(2 * len(sites), dtype=torch.int64)
        for tally in tallies:
            for place, number in tally.keys:
                passes[place] = max(int(passes[place]), number + 1)
                passes[len(sites) + place] = tally.top_k
        for place, site in enumerate(sites):
            if site.top_k:
                passes[len(sites) + place] = site.top_k
        agreed = ranks.max(passes).tolist()
        return cls(sites, agreed[: len(sites)], agreed[len(sites) :])

    def vector(
        self,
        tallies: Sequence[Tally],
        extra: Tensor,
        squares_L: Tensor,
        ranks: Ranks,
        speaks: bool,
    ) -> Tensor:
        """This rank's share of the step, fp64; nothing in it waits for the device."""
        device = extra.device
        flat_of: defaultdict[tuple[int, int], list[Tensor]] = defaultdict(list)
        peaks_of: defaultdict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for tally in tallies if speaks else ():
            flat_LN = tally.flat().to(device, non_blocking=True)
            peaks_L = tally.max_logit_L.to(device, torch.float64, non_blocking=True)
            for key, flat_N, peak in zip(tally.keys, flat_LN, peaks_L, strict=True):
                flat_of[key].append(flat_N)
                peaks_of[key].append(peak)
        parts, peaks = [extra], []
        for row in self.rows:
            size = Tally.size(self.sites[row.place].num_experts)
            nothing_N = torch.zeros(size, dtype=torch.float64, device=device)
            key = row.place, row.number
            parts.append(functools.reduce(torch.add, flat_of[key] or [nothing_N]))
            peaks.append(functools.reduce(torch.maximum, peaks_of[key] or [nothing_N[0]]))
        maxima = torch.zeros(ranks.size, len(self.rows), dtype=torch.float64, device=device)
        maxima[ranks.rank] = torch.stack(peaks)
        return torch.cat([*parts, squares_L.to(device), maxima.reshape(-1)])

    def read(self, vector: Sequence[float], biases: list[list[float]], ranks: int) -> StepSums:
        """The vector, summed over ranks, as numbers."""
        at, rows, sites = len(EXTRA), len(self.rows), self.sites
        extra = dict(zip(EXTRA, vector[:at], strict=True))
        totals = StepSums(extra, [], [], [], [], [], [], [], biases, [], [])
        for row in self.rows:
            E = sites[row.place].num_experts
            flat = vector[at : at + Tally.size(E)]
            at += Tally.size(E)
            totals.counts.append([int(n) for n in flat[:E]])
            totals.unrouted.append(int(flat[E]))
            totals.tokens.append(int(flat[E + 1]))
            sums = dict(zip(SUMS, flat[E + 2 :], strict=False))
            totals.sums.append(sums)
            rest = flat[E + 2 + len(SUMS) :]
            totals.mean_entropy.append(_entropy(rest[:E], sums["scored"]))
            totals.weights.append(list(rest[E : 2 * E]))
            totals.norms.append(list(rest[2 * E :]))
        totals.grad_squares.extend(vector[at : at + rows])
        at += rows
        for index in range(rows):
            peaks = [vector[at + rank * rows + index] for rank in range(ranks)]
            totals.max_logit.append(math.nan if any(map(math.isnan, peaks)) else max(peaks))
        return totals


def _entropy(sums_E: Sequence[float], scored: float) -> float | None:
    if not scored:
        return None
    shares = [p / scored for p in sums_E]
    if not all(map(math.isfinite, shares)):
        return math.nan
    return -math.fsum(p * math.log(p) for p in shares if p > 0)
