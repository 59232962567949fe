"""Whether loads swing: per expert the sign of its deviation is one bit a step.

A shift and a count of bits correlate an expert with itself some steps later, so that a look at 64
steps of 256 experts costs a few milliseconds. Loads are shares: a step with more tokens is not a
swing.
"""

from collections.abc import Sequence
from operator import mul

_TWICE = 0.75
"""Share of the steps up to which twice the period is tested; beyond, too few pairs remain."""


def swinging(rows: Sequence[Sequence[int]], amplitude: float) -> list[int]:
    """Bits of the experts whose share of the load deviates by more than ``amplitude`` (σ)."""
    steps, experts = len(rows), len(rows[0])
    scales = [experts / total if (total := sum(row)) else 0.0 for row in rows]
    masks = []
    for column in zip(*rows, strict=True):
        loads = list(map(mul, column, scales))
        mean = sum(loads) / steps
        if sum(map(mul, loads, loads)) / steps - mean * mean > amplitude * amplitude:
            masks.append(sum((load > mean) << step for step, load in enumerate(loads)))
    return masks


def to_and_fro(masks: Sequence[int], steps: int, limit: float) -> int:
    """Period after which the bits agree while they disagree after half of it; 0 for none."""
    agreement = [0.0] + [_agreement(masks, steps, lag) for lag in range(1, steps // 2 + 1)]
    swings = {
        period: agreement[period]
        for period in range(2, len(agreement))
        if agreement[period] >= limit and _opposite(agreement, period) <= -limit
    }
    return _shortest(swings)


def recurring(masks: Sequence[int], steps: int, limit: float) -> int:
    """Period after which a pattern of any form repeats; 0 for none.

    Of three groups that take turns each is up in a third of the steps: what counts is how much
    more often the bits meet than by chance, and that they met less often in between. A block of
    data that lasts meets itself less and less often and does not come back.
    """
    shares = [mask.bit_count() / steps for mask in masks]
    variance = sum(p * (1.0 - p) for p in shares)
    if variance <= 0.0:
        return 0
    by_chance = sum(p * p for p in shares)

    def correlation(lag: int) -> float:
        both = sum((mask & (mask >> lag)).bit_count() for mask in masks)
        return (both / (steps - lag) - by_chance) / variance

    known = [1.0] + [correlation(lag) for lag in range(1, int(_TWICE * steps) + 1)]
    swings = {
        period: known[period]
        for period in range(2, steps // 2 + 1)
        if known[period] >= limit
        and known[period] - min(known[1:period]) >= limit
        and (2 * period >= len(known) or known[2 * period] >= limit)
    }
    return _shortest(swings)


def _shortest(swings: dict[int, float]) -> int:
    """The shortest of the clear ones: twice the period agrees as well."""
    clear = max(swings.values(), default=0.0) - 0.05
    return min((period for period, value in swings.items() if value >= clear), default=0)


def _opposite(agreement: Sequence[float], period: int) -> float:
    """Agreement after half a period; of two nearest lags the lower one."""
    return min(agreement[period // 2], agreement[(period + 1) // 2])


def _agreement(masks: Sequence[int], steps: int, lag: int) -> float:
    """Mean correlation of signs with themselves ``lag`` steps later: −1 … 1."""
    pairs = steps - lag
    keep = (1 << pairs) - 1
    differing = sum(((mask ^ (mask >> lag)) & keep).bit_count() for mask in masks)
    return 1.0 - 2.0 * differing / (pairs * len(masks))
