"""Do the same experts carry a layer at two moments? Ranks compare who, whatever the loads are."""

import math
from collections.abc import Sequence


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's: 1 where both order the experts alike, −1 where they order them oppositely.

    Equal loads share their mean rank; NaN where one of the two is constant or not finite.
    """
    if len(first) < 2 or not all(map(math.isfinite, [*first, *second])):
        return math.nan
    a, b = _ranks(first), _ranks(second)
    middle = (len(a) + 1) / 2
    together = math.fsum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    spread_a = math.fsum((x - middle) ** 2 for x in a)
    spread_b = math.fsum((y - middle) ** 2 for y in b)
    if not spread_a or not spread_b:
        return math.nan
    return max(-1.0, min(1.0, together / math.sqrt(spread_a * spread_b)))


def _ranks(values: Sequence[float]) -> list[float]:
    """The rank of each value from 1 up; equal ones share the mean of theirs."""
    order = sorted(range(len(values)), key=lambda at: values[at])
    ranks = [0.0] * len(values)
    first = 0
    while first < len(order):
        last = first
        while last + 1 < len(order) and values[order[last + 1]] == values[order[first]]:
            last += 1
        for at in order[first : last + 1]:
            ranks[at] = (first + last) / 2 + 1
        first = last + 1
    return ranks
