"""Popularity of every expert with every router, and the counts that are drawn from it.

A popularity is a noise-free function of router and step; its unnormalised weights must not be
changed. An expert's chance to be chosen is proportional to its weight, capped at 1. Its count is
binomial around that, and every row sums to tokens × k, as it would be logged.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from operator import mul, sub

from microscope_tui import measures
from microscope_tui.scenarios.run import Shape

Popularity = Callable[[int, int], Sequence[float]]
"""``popularity(router, step)``: weights of all experts."""

COLLAPSED_BELOW = 0.35
_LEAST_HEALTHY = 0.55
_SETTLED_AFTER = 300
_PARTS = 10**6
_TABLE = 1 << 14  # deviates; a row takes a stretch of them from a random place
_FEW = 0.5  # below this mean, noise around it and a cut at 0 would invent tokens


def collapse_index(weights: Sequence[float], shape: Shape) -> float:
    """Of the counts to be expected, without noise."""
    counts = [round(share * _PARTS) for share in inclusion_shares(weights, shape.top_k)]
    effective = measures.effective_experts(counts)
    return measures.collapse_index(effective, shape.num_experts, shape.top_k) or 0.0


def scaled_to(logs: Sequence[float], shape: Shape, target: float) -> list[float]:
    """Logarithms of weights, scaled so that the collapse index is ``target``."""
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
    """Spread out at first, then evened out down to ``sigma``."""
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
    """From one set of logarithms to another, with ``progress(step)``."""
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
    """``base`` with ``pull(step)`` added to the logarithms of hot experts."""

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
    """The first step from ``start`` on at which one of the routers is collapsed, if the counts
    follow the popularity exactly; the last step of the run if none ever is.
    """
    for step in range(start, shape.steps):
        if any(collapse_index(popularity(r, step), shape) < COLLAPSED_BELOW for r in routers):
            return step
    return shape.steps


def draw_counts(weights: Sequence[float], tokens: int, top_k: int, rng: random.Random) -> list[int]:
    """They sum to ``tokens × top_k``, none above ``tokens``."""
    total = math.fsum(weights)
    deviates = _stretch(_normal_deviates(), len(weights), rng)
    if total > 1e-200 and max(weights) * top_k < 0.99 * total:
        scale = tokens * top_k / total
        least, means = min(weights) * scale, None
    else:
        means = [tokens * share for share in inclusion_shares(weights, top_k)]
        least, scale = min(means), 0.0
    if means is None and least >= _FEW:
        sqrt, per_token = math.sqrt, 1.0 / tokens
        drawn = [
            (mean := weight * scale) + sqrt(mean * (1.0 - mean * per_token)) * deviate
            for weight, deviate in zip(weights, deviates, strict=True)
        ]
    else:
        means = means or [weight * scale for weight in weights]
        drawn = [_noisy(mean, tokens, z) for mean, z in zip(means, deviates, strict=True)]
    if min(drawn) < 0.0 or max(drawn) > tokens:
        drawn = [min(float(tokens), max(0.0, count)) for count in drawn]
        if not any(drawn):
            drawn = [tokens * share for share in inclusion_shares(weights, top_k)]
    counts = whole(drawn, tokens * top_k)
    if max(counts) > tokens:
        _repair(counts, inclusion_shares(weights, top_k), tokens, top_k)
    return counts


def jittered(weights: Sequence[float], concentration: float, rng: random.Random) -> list[float]:
    """Times random factors of mean 1 and variance 1 ÷ ``concentration``."""
    deviates = _stretch(_gamma_deviates(concentration), len(weights), rng)
    return list(map(mul, weights, deviates))


def whole(numbers: Sequence[float], total: int) -> list[int]:
    """The numbers in proportion, as integers that sum to ``total``; what is 0 stays 0."""
    sums = list(accumulate(numbers))
    scale = total / sums[-1]
    # Rounding the running sums, not the numbers: the remainders carry over and none is lost.
    ends = [int(reached * scale + 0.5) for reached in sums]
    last = len(ends)
    while last and sums[last - 1] == sums[-1]:  # the last ones may be 0 and must stay so
        last -= 1
        ends[last] = total
    return list(map(sub, ends, [0, *ends]))


def inclusion_shares(weights: Sequence[float], top_k: int) -> list[float]:
    """Probability that a token chooses each expert: sums to k."""
    free = set(range(len(weights)))
    shares = [0.0] * len(weights)
    left = float(top_k)
    while free:
        total = math.fsum(weights[e] for e in free)
        full = {e for e in free if total <= 0 or left * weights[e] >= total}
        if not full or total <= 0:
            for expert in free:
                shares[expert] = left * weights[expert] / total if total > 0 else left / len(free)
            break
        for expert in full:
            shares[expert] = 1.0
        free -= full
        left -= len(full)
    return shares


def _noisy(mean: float, tokens: int, deviate: float) -> float:
    if mean < _FEW:
        return mean  # rounding the running sums makes the noise
    return mean + math.sqrt(max(0.0, mean * (1.0 - mean / tokens))) * deviate


def _repair(counts: list[int], shares: list[float], tokens: int, top_k: int) -> None:
    """Move counts above ``tokens`` to experts with room, popular ones first."""
    counts[:] = [min(tokens, count) for count in counts]
    missing = tokens * top_k - sum(counts)
    order = sorted((e for e, share in enumerate(shares) if share > 0), key=lambda e: -shares[e])
    while missing > 0:
        room = missing
        for expert in order:
            moved = min(max(1, missing // len(order)), missing, tokens - counts[expert])
            counts[expert] += moved
            missing -= moved
        if missing == room:  # every popular expert is full: shares were rounded to 0
            order = list(range(len(counts)))


def _stretch(table: list[float], length: int, rng: random.Random) -> list[float]:
    if length > _TABLE // 4:
        table = table * (4 * length // _TABLE + 1)
    start = int(rng.random() * (len(table) - length))
    return table[start : start + length]


@lru_cache(maxsize=1)
def _normal_deviates() -> list[float]:
    rng = random.Random(0)
    drawn = [rng.gauss(0, 1) for _ in range(_TABLE)]
    middle = math.fsum(drawn) / _TABLE
    spread = math.sqrt(math.fsum((x - middle) ** 2 for x in drawn) / _TABLE)
    return [(x - middle) / spread for x in drawn]


@lru_cache(maxsize=32)
def _gamma_deviates(concentration: float) -> list[float]:
    rng = random.Random(1)
    drawn = [rng.gammavariate(concentration, 1 / concentration) for _ in range(_TABLE)]
    mean = math.fsum(drawn) / _TABLE
    return [deviate / mean for deviate in drawn]
