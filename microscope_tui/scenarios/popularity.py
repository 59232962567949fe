"""Popularity of every expert with every router: the cause of the counts.

A popularity is a noise-free function of router and step; it returns unnormalised weights, which
must not be changed.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence

from microscope_tui import measures
from microscope_tui.scenarios.shape import Shape
from microscope_tui.scenarios.synthetic import inclusion_shares

Popularity = Callable[[int, int], Sequence[float]]
"""``popularity(router, step)``: unnormalised weight of every expert."""

COLLAPSED_BELOW = 0.35
"""The collapse index below which a router is called collapsed."""
_LEAST_HEALTHY = 0.55
_SETTLED_AFTER = 300
_PARTS = 10**6


def collapse_index(weights: Sequence[float], shape: Shape) -> float:
    """The collapse index of the counts to be expected, without noise."""
    counts = [round(share * _PARTS) for share in inclusion_shares(weights, shape.top_k)]
    effective = measures.effective_experts(counts)
    return measures.collapse_index(effective, shape.num_experts, shape.top_k) or 0.0


def scaled_to(logs: Sequence[float], shape: Shape, target: float) -> list[float]:
    """The logarithms of weights, scaled so that the collapse index is ``target``."""
    low, high = 0.0, 8.0
    for _ in range(24):
        middle = (low + high) / 2
        if collapse_index([math.exp(middle * log) for log in logs], shape) > target:
            low = middle
        else:
            high = middle
    return [low * log for log in logs]


def uneven(shape: Shape, sigma: float, rng: random.Random) -> list[list[float]]:
    """Logarithms of lognormal weights, no router less even than a healthy one can be."""
    rows = []
    for _ in range(shape.routers):
        row = [rng.gauss(0, sigma) for _ in range(shape.num_experts)]
        if collapse_index([math.exp(log) for log in row], shape) < _LEAST_HEALTHY:
            row = scaled_to(row, shape, _LEAST_HEALTHY)
        rows.append(row)
    return rows


def constant(shape: Shape, sigma: float, rng: random.Random) -> Popularity:
    """The same uneven popularity at every step."""
    weights = [[math.exp(log) for log in row] for row in uneven(shape, sigma, rng)]
    return lambda router, step: weights[router]


def settling(shape: Shape, sigma: float, rng: random.Random) -> Popularity:
    """Popularity that starts spread out and is evened out by the balancing, down to ``sigma``."""
    logs = uneven(shape, sigma, rng)
    skill = [[rng.gauss(0, 1) for _ in range(shape.num_experts)] for _ in range(shape.routers)]
    settled = [[math.exp(log) for log in row] for row in logs]

    def popularity(router: int, step: int) -> Sequence[float]:
        if step > _SETTLED_AFTER:
            return settled[router]
        early = 0.9 * math.exp(-step / 25)
        pairs = zip(logs[router], skill[router], strict=True)
        return [math.exp(log + early * talent) for log, talent in pairs]

    return popularity


def blended(
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    progress: Callable[[int], float],
) -> Popularity:
    """From one set of logarithms to another, as ``progress(step)`` goes from 0 to 1."""
    ends = [[[math.exp(log) for log in row] for row in rows] for rows in (before, after)]

    def popularity(router: int, step: int) -> Sequence[float]:
        share = progress(step)
        if share <= 0.0 or share >= 1.0:
            return ends[share >= 1.0][router]
        pairs = zip(before[router], after[router], strict=True)
        return [math.exp(old + share * (new - old)) for old, new in pairs]

    return popularity


def pulled(
    base: Popularity, hot: Mapping[int, Sequence[int]], pull: Callable[[int], float]
) -> Popularity:
    """``base`` with ``pull(step)`` added to the logarithm of the hot experts of some routers."""

    def popularity(router: int, step: int) -> Sequence[float]:
        weights = base(router, step)
        strength = pull(step) if router in hot else 0.0
        if strength == 0.0:
            return weights
        factor = math.exp(strength)
        changed = list(weights)
        for expert in hot[router]:
            changed[expert] *= factor
        return changed

    return popularity


def first_collapsed(
    popularity: Popularity, routers: Sequence[int], shape: Shape, start: int
) -> int:
    """The first step from ``start`` on at which one of the routers is collapsed."""
    for step in range(start, shape.steps):
        if any(collapse_index(popularity(r, step), shape) < COLLAPSED_BELOW for r in routers):
            return step
    return shape.steps
