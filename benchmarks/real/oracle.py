"""What is true of a run: brute force with numpy, one function a rule, no code of the diagnosis.

ERODING is a forecast and has no truth at its own step: it is judged by what came of it.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.real.arrays import (
    WARM_UP,
    WHOLE_RUN,
    ArrayLog,
    Stretch,
    Stretches,
    Zone,
    collapse_index,
    lasting,
    summed,
    trailing_median,
)

COMES_WITH = {
    "DEAD": ("COLLAPSE",),
    "STARVED": ("COLLAPSE", "DEAD"),
    "OVERLOAD": ("COLLAPSE",),
    "UNIFORM": ("COLLAPSE",),
    "ERODING": ("COLLAPSE",),
}
"""What need not be reported of a layer where its cause is reported."""
WINDOW = 25
SWING_STEPS, SWING_EVERY = 64, 16
SWING_AGREEMENT = {Zone.CERTAIN: 0.4, Zone.NOMINAL: 0.35, Zone.POSSIBLE: 0.25}
"""Autocorrelation after a period, minus that after half of it; balanced runs reach 0.17."""
SWING_SHARE, SWING_SIGMA = 0.3, 0.2
RUNAWAY_EVERY, RUNAWAY_POINTS, RUNAWAY_TIMES = 25, 21, 4
RUNAWAY = {  # R², share of the fastest rate, c below, rise of c below
    Zone.CERTAIN: (0.985, 0.6, 0.75, 0.02),
    Zone.NOMINAL: (0.98, 0.5, 0.8, 0.03),
    Zone.POSSIBLE: (0.95, 0.4, 0.85, 0.05),
}


def gradient_spike(log: ArrayLog, zone: Zone) -> Stretches:
    """Gradient norm above 10 × its trailing median for 10 steps; above 50 × once it is possible: it
    is more than information if a divergence follows."""
    norm_S = log.scalar("grad_norm")
    ratio_S = norm_S / trailing_median(norm_S)
    steps, judged_S = log.steps, log.judged_S
    stretches = lasting(steps, ratio_S > zone.above(10), zone.steps(10), zone.share, judged_S)
    if zone is Zone.POSSIBLE:
        stretches += lasting(steps, ratio_S > zone.above(50), 1)
    return {WHOLE_RUN: stretches} if stretches else {}


def logits(log: ArrayLog, zone: Zone) -> Stretches:
    """z-loss above 3 × its trailing median, and no small one, for 10 steps.

    In the warm-up above 10 × the first lines (beside other such layers 3 ×), and a second sign.
    """
    z_SL, most = log.per_router("z_loss"), math.log(log.num_experts)
    over_SL = (z_SL > zone.above(3) * trailing_median(z_SL)) & (z_SL >= zone.above(1))
    found = _by_layer(log, over_SL, 10, zone)
    first_L = np.maximum(np.median(z_SL[:3], axis=0), most**2)
    norm_S = log.scalar("grad_norm")
    sign_SL = collapse_index(log.counts_SLE, log.top_k) < zone.below(0.35)
    sign_SL |= log.per_router("entropy") < zone.below(0.02) * most
    sign_SL |= (norm_S > zone.above(10) * np.median(norm_S[:3]))[:, None]
    times = 3 if zone is Zone.POSSIBLE else 10
    early_SL = sign_SL & (z_SL > zone.above(times) * first_L) & (log.steps <= WARM_UP)[:, None]
    for name, early in _named(log, early_SL, log.steps, zone.steps(10), zone.share).items():
        found[name] = [*early, *found.get(name, [])]
    return found


def uniform(log: ArrayLog, zone: Zone) -> Stretches:
    """Entropy above 0.97 ln E and a router gradient below 1e-6 of the whole, for 100 steps."""
    planned = log.header["planned_steps"] or 0
    entropy_SL = log.per_router("entropy") / math.log(log.num_experts)
    norm_S1 = log.scalar("grad_norm")[:, None]
    over_SL = entropy_SL > 0.97 - 0.005 * zone
    over_SL &= log.per_router("grad_norm") < 1e-6 * (1 + 0.2 * zone) * norm_S1
    over_SL &= (log.steps > max(500, 0.3 * planned))[:, None]
    return _named(log, over_SL, log.steps, {-1: 105, 0: 100, 1: 90}[zone], zone.share)


def bias_runaway(log: ArrayLog, zone: Zone) -> Stretches:
    """max − min of the bias on a straight line over 500 steps while c stays low; four looks."""
    bias_SLE, balance = log.bias(), log.header["balance"]
    if balance.get("method") != "bias" or bias_SLE is None:
        return {}
    straightness, share, low, rise = RUNAWAY[zone]
    spread_SL = np.ptp(bias_SLE, axis=-1)
    c_SL = collapse_index(log.counts_SLE, log.top_k)
    looks = np.arange(0, len(log.steps), RUNAWAY_EVERY)
    over_NL = np.zeros((len(looks), len(log.names)), bool)
    for look in range(RUNAWAY_POINTS - 1, len(looks)):
        at = looks[look - RUNAWAY_POINTS + 1 : look + 1]
        for index in range(len(log.names)):
            spread, c = spread_SL[at, index], c_SL[at, index]
            slope, _ = np.polyfit(log.steps[at], spread, 1)
            straight = spread.std() > 0 and np.corrcoef(log.steps[at], spread)[0, 1] ** 2
            fast = slope >= share * 2 * balance["bias_update_rate"]
            third = RUNAWAY_POINTS // 3
            flat = c[-third:].mean() - c[:third].mean() < rise
            over_NL[look, index] = straight > straightness and fast and c[-1] < low and flat
    times = RUNAWAY_TIMES + (zone is Zone.CERTAIN) - (zone is Zone.POSSIBLE)
    return _named(log, over_NL, log.steps[looks], times)


def settings(log: ArrayLog, zone: Zone) -> Stretches:
    """What the header gives away, by its name; and an auxiliary loss that pools its layers."""
    model, balance, last = log.header["model"], log.header["balance"], int(log.steps[-1])
    whole = [Stretch(1, 1, last)]
    found: Stretches = {}
    if model["top_k"] == 1 and model["norm_top_k"]:
        found["top-1 normalised"] = whole
    if balance["method"] == "none":
        found["no balancing"] = whole
    if not balance.get("output_router_logits", True):
        found["aux not applied"] = whole
    elif balance["method"] == "aux":
        floor_S = np.abs(log.scalar("aux", within="losses") / log.top_k - 1) <= 0.05 + 0.005 * zone
        effective_SL = collapse_index(log.counts_SLE, 0) * log.num_experts
        uneven_S = effective_SL.min(-1) < zone.below(0.5) * log.num_experts
        over_S = floor_S & uneven_S & (log.steps > WARM_UP)
        if stretches := lasting(log.steps, over_S, zone.steps(25)):
            found["aux pooled"] = stretches
    return found


def collapse(log: ArrayLog, zone: Zone, limit: float = 0.35) -> Stretches:
    """c of the counts of 25 steps below ``limit`` for 25 steps; below 0.05 even in the warm-up."""
    c_SL = collapse_index(summed(log.counts_SLE, WINDOW), log.top_k, 0.45 + 0.06 * zone)
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
    """The same expert at zero for 100 steps and three windows of 8 steps, 56 expected tokens; or
    below 1/1,000 of the fair share in every 66 steps, if that is a token."""
    fair = log.tokens.mean() * log.top_k / log.num_experts
    window = max(8, math.ceil(56 / fair))
    # Windows lie on a raster: only four in a row contain three for sure.
    needed = {
        Zone.CERTAIN: max(4 * window, 100 + 2 * window),
        Zone.NOMINAL: max(3 * window, 100),
        Zone.POSSIBLE: max(3 * window - 1, 100),
    }
    low_SLE = summed(log.counts_SLE, 66) < max(1.0, zone.below(0.001) * 66 * fair)
    found: Stretches = {}
    for index, name in enumerate(log.names):
        for counts_S, low_S in zip(log.counts_SLE[:, index].T, low_SLE[:, index].T, strict=True):
            stretches = lasting(log.steps, counts_S == 0, needed[zone], 1.0, log.judged_S)
            # A sum is low from the 66th step on.
            stretches += lasting(log.steps, low_S, max(1, needed[zone] - 66), 1.0, log.judged_S)
            if stretches:
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
    """Counts ≠ tokens × k, above the tokens or all equal: 3 steps."""
    expected_S = log.tokens * log.top_k
    found: Stretches = {}
    for index, name in enumerate(log.names):
        counts_SE = log.counts_SLE[:, index]
        wrong_S = (counts_SE.sum(-1) != expected_S) | (counts_SE.max(-1) > log.tokens)
        equal_S = (np.ptp(counts_SE, axis=-1) <= 1) & (expected_S >= 50 * log.num_experts)
        if stretches := lasting(log.steps, wrong_S | equal_S, zone.steps(3)):
            found[name] = stretches
    return found


def diverged(log: ArrayLog, zone: Zone) -> Stretches:
    """A loss that is not finite, nine steps in a row."""
    stretches = lasting(log.steps, ~np.isfinite(log.scalar("loss")), zone.steps(9))
    return {WHOLE_RUN: stretches} if stretches else {}


def _by_layer(log: ArrayLog, over_SL: np.ndarray, needed: int, zone: Zone) -> Stretches:
    return _named(log, over_SL, log.steps, zone.steps(needed), zone.share, log.judged_S)


def _named(log: ArrayLog, over_NL: np.ndarray, steps_N: np.ndarray, *lasts: Any) -> Stretches:
    """Stretches of every layer that has some; ``lasts`` as in :func:`lasting`."""
    found = {
        name: lasting(steps_N, over_N, *lasts)
        for name, over_N in zip(log.names, over_NL.T, strict=True)
    }
    return {name: stretches for name, stretches in found.items() if stretches}


RULES: dict[str, Callable[[ArrayLog, Zone], Stretches]] = {
    "METER": meter,
    "DIVERGED": diverged,
    "COLLAPSE": collapse,
    "DEAD": dead,
    "STARVED": starved,
    "OVERLOAD": overload,
    "OSCILLATION": oscillation,
    "LOGITS": logits,
    "GRADSPIKE": gradient_spike,
    "UNIFORM": uniform,
    "BIAS_RUNAWAY": bias_runaway,
    "LINT": settings,
}


def eroded(log: ArrayLog, layer: str, alarm: int, ahead: int = 500) -> str:
    """What came of the forecast ``ERODING`` in ``layer``: ``collapsed``, ``open`` or ``no``.

    Open: the run ended before the time was up, and c was about as low then as it has ever been.
    """
    c_SL = collapse_index(summed(log.counts_SLE, WINDOW), log.top_k)
    after = (log.steps > alarm) & (log.steps <= alarm + ahead)
    c_S = c_SL[after, log.names.index(layer)]
    if (c_S < 0.35).any():
        return "collapsed"
    cut_short = log.steps[-1] < alarm + ahead
    return "open" if cut_short and (not len(c_S) or c_S[-1] < c_S.min() + 0.02) else "no"
