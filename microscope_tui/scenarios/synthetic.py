"""Counts of a router as they would be logged, drawn from how popular its experts are.

An expert's chance to be chosen is proportional to its weight, capped at 1 (a token chooses an
expert at most once); its count is binomial around that, and every row sums to tokens × k.
"""

import math
import random
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from operator import mul, sub

_TABLE = 1 << 14  # deviates; a row takes a stretch of them from a random place
_FEW = 0.5  # below this mean, noise around it and a cut at 0 would invent tokens


def draw_counts(weights: Sequence[float], tokens: int, top_k: int, rng: random.Random) -> list[int]:
    """Counts of one router for one step; they sum to ``tokens × top_k``, none above ``tokens``."""
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
    """The weights times random factors of mean 1 and variance 1 ÷ ``concentration``."""
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
    """Probability that a token chooses each expert: sums to k, each at most 1."""
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
    """Take what is above ``tokens`` to where there is room, popular experts first."""
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
