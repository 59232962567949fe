"""Brute force on the counts of every step: what is true of the load, whatever anybody says."""

import math

import numpy as np

from benchmarks.real.log import WARM_UP, ArrayLog
from benchmarks.real.stretches import (
    WHOLE_RUN,
    Stretch,
    Stretches,
    Zone,
    collapse_index,
    lasting,
    summed,
)

WINDOW = 25
SWING_STEPS, SWING_EVERY = 64, 16
SWING_AGREEMENT = {Zone.CERTAIN: 0.4, Zone.NOMINAL: 0.35, Zone.POSSIBLE: 0.25}
"""Autocorrelation after a period, minus that after half of it; balanced runs reach 0.17."""
SWING_SHARE, SWING_SIGMA = 0.3, 0.2


def collapse(log: ArrayLog, zone: Zone, limit: float = 0.35) -> Stretches:
    """c of the counts of 25 steps below ``limit`` for 25 steps; below 0.05 even in the warm-up."""
    c_SL = collapse_index(summed(log.counts_SLE, WINDOW), log.top_k)
    found: Stretches = {}
    for index, name in enumerate(log.names):
        low_S, needed = c_SL[:, index] < zone.below(limit), zone.steps(WINDOW)
        stretches = lasting(log.steps, low_S, needed, zone.share, log.judged_S)
        urgent_S = c_SL[:, index] < zone.below(0.05)
        stretches += lasting(log.steps, urgent_S, zone.steps(50), zone.share)
        if stretches:
            found[name] = stretches
    return found


def dead(log: ArrayLog, zone: Zone) -> Stretches:
    """The same expert at zero for 100 steps and three windows of 8 steps, 56 expected tokens."""
    fair = log.tokens.mean() * log.top_k / log.num_experts
    window = max(8, math.ceil(56 / fair))
    # Windows lie on a raster: only four in a row contain three for sure.
    needed = {
        Zone.CERTAIN: max(4 * window, 100 + 2 * window),
        Zone.NOMINAL: max(3 * window, 100),
        Zone.POSSIBLE: max(3 * window - 1, 100),
    }
    found: Stretches = {}
    for index, name in enumerate(log.names):
        for zero_S in (log.counts_SLE[:, index] == 0).T:
            if stretches := lasting(log.steps, zero_S, needed[zone], 1.0, log.judged_S):
                found.setdefault(name, []).extend(stretches)
    return found


def starved(log: ArrayLog, zone: Zone) -> Stretches:
    """More than a tenth of the experts below a tenth of their share in 25 steps, for 50 steps."""
    sums_SLE = summed(log.counts_SLE, WINDOW)
    low_SLE = sums_SLE < zone.below(0.1) * sums_SLE.mean(-1, keepdims=True)
    over_SL = low_SLE.mean(-1) > 0.1
    return _by_layer(log, over_SL, 50, zone)


def overload(log: ArrayLog, zone: Zone) -> Stretches:
    """MaxVio above three times its median of the first 100 judged steps, and above 1, 25 steps.

    Information, and no warning, where neither a capacity nor ranks make others wait for an expert.
    """
    ranks = int(log.header.get("expert_parallel_size") or 1)
    bounded = ranks > 1 or log.header["model"].get("capacity_factor")
    if not bounded or len(log.steps) <= 2 * WARM_UP:
        return {}
    loads_SLE = log.counts_SLE / log.counts_SLE.mean(-1, keepdims=True)
    violation_SL = loads_SLE.max(-1) - 1
    usual_L = np.median(violation_SL[WARM_UP : 2 * WARM_UP], axis=0)
    over_SL = violation_SL > zone.above(1.0) * np.maximum(3 * usual_L, 1.0)
    over_SL[: 2 * WARM_UP] = False
    return _by_layer(log, over_SL, 25, zone)


def oscillation(log: ArrayLog, zone: Zone) -> Stretches:
    """Most loads swing with a period of 2 to 32 steps, in 2 × 64 steps; three times is certain."""
    loads_SLE = log.counts_SLE / log.counts_SLE.mean(-1, keepdims=True)
    starts = range(WARM_UP, len(log.steps) - SWING_STEPS + 1, SWING_EVERY)
    spans = {Zone.CERTAIN: 9, Zone.NOMINAL: 5, Zone.POSSIBLE: 4}[zone]
    found: Stretches = {}
    for index, name in enumerate(log.names):
        swings = np.array([_swings(loads_SLE[s : s + SWING_STEPS, index], zone) for s in starts])
        firsts = log.steps[list(starts)]
        for stretch in lasting(firsts, swings, spans):
            known, last = stretch.known + SWING_STEPS - 1, stretch.last + SWING_STEPS - 1
            found.setdefault(name, []).append(Stretch(stretch.onset, known, last))
    return found


def _swings(loads_SE: np.ndarray, zone: Zone) -> bool:
    """The mean autocorrelation of the loads that move has a peak, and its opposite at half.

    Or, where the sum of the steps is even and most of them are not, a peak that comes again.
    """
    moving = loads_SE.std(0) > zone.above(SWING_SIGMA)
    if moving.mean() <= zone.above(SWING_SHARE):
        return False
    x_SE = loads_SE[:, moving] - loads_SE[:, moving].mean(0)
    correlation = [1.0] + [_correlation(x_SE[:-lag], x_SE[lag:]) for lag in range(1, 49)]
    least = SWING_AGREEMENT[zone]
    back = least + 0.15
    uneven = np.median((loads_SE**2).mean(-1)) > 1.1 * (loads_SE.mean(0) ** 2).mean()
    if uneven and any(
        correlation[period] >= back
        and correlation[period] - min(correlation[1:period]) >= back
        and (period > 24 or correlation[2 * period] >= back)
        for period in range(2, 33)
    ):
        return True
    return any(
        correlation[period] >= least
        and min(correlation[period // 2], correlation[(period + 1) // 2]) <= -least
        for period in range(2, 33)
    )


def _correlation(a_SE: np.ndarray, b_SE: np.ndarray) -> float:
    norms_E = np.sqrt((a_SE**2).sum(0) * (b_SE**2).sum(0))
    return float(np.mean((a_SE * b_SE).sum(0) / np.maximum(norms_E, 1e-12)))


def meter(log: ArrayLog, zone: Zone) -> Stretches:
    """Counts ≠ tokens × k, above the tokens or all equal, or a loss that is not finite: 3 steps."""
    expected_S = log.tokens * log.top_k
    found: Stretches = {}
    for index, name in enumerate(log.names):
        counts_SE = log.counts_SLE[:, index]
        wrong_S = (counts_SE.sum(-1) != expected_S) | (counts_SE.max(-1) > log.tokens)
        equal_S = (np.ptp(counts_SE, axis=-1) <= 1) & (expected_S >= 50 * log.num_experts)
        if stretches := lasting(log.steps, wrong_S | equal_S, zone.steps(3)):
            found[name] = stretches
    broken_S = ~np.isfinite(log.scalar("loss"))
    if stretches := lasting(log.steps, broken_S, zone.steps(3)):
        found[WHOLE_RUN] = stretches
    return found


def _by_layer(log: ArrayLog, over_SL: np.ndarray, needed: int, zone: Zone) -> Stretches:
    found = {
        name: lasting(log.steps, over_S, zone.steps(needed), zone.share, log.judged_S)
        for name, over_S in zip(log.names, over_SL.T, strict=True)
    }
    return {name: stretches for name, stretches in found.items() if stretches}
