"""What is true of a run: brute force with numpy, one function a rule, no code of the diagnosis.

The load is judged in ``oracle_load.py``; here are gradients, logits, the bias and the settings.
ERODING is a forecast and has no truth at its own step: it is judged by what came of it.
"""

import math
from collections.abc import Callable

import numpy as np

from benchmarks.real import oracle_load
from benchmarks.real.log import WARM_UP, ArrayLog
from benchmarks.real.stretches import (
    WHOLE_RUN,
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
"""What need not be said of a layer where its cause is said."""
RUNAWAY_EVERY, RUNAWAY_POINTS, RUNAWAY_TIMES = 25, 21, 4
RUNAWAY = {  # R², share of the fastest rate, c below, rise of c below
    Zone.CERTAIN: (0.985, 0.6, 0.75, 0.02),
    Zone.NOMINAL: (0.98, 0.5, 0.8, 0.03),
    Zone.POSSIBLE: (0.95, 0.4, 0.85, 0.05),
}


def gradient_spike(log: ArrayLog, zone: Zone) -> Stretches:
    """Gradient norm above 10 × its trailing median for 10 steps, or above 50 × once."""
    norm_S = log.scalar("grad_norm")
    ratio_S = norm_S / trailing_median(norm_S)
    steps, judged_S = log.steps, log.judged_S
    stretches = lasting(steps, ratio_S > zone.above(10), zone.steps(10), zone.share, judged_S)
    stretches += lasting(steps, ratio_S > zone.above(50), 1)
    return {WHOLE_RUN: stretches} if stretches else {}


def logits(log: ArrayLog, zone: Zone) -> Stretches:
    """z-loss above 3 × its trailing median, and no small one, for 10 steps."""
    z_SL = log.per_router("z_loss")
    over_SL = (z_SL > zone.above(3) * trailing_median(z_SL)) & (z_SL >= zone.above(1))
    found = {
        name: lasting(log.steps, over_S, zone.steps(10), zone.share, log.judged_S)
        for name, over_S in zip(log.names, over_SL.T, strict=True)
    }
    return {name: stretches for name, stretches in found.items() if stretches}


def uniform(log: ArrayLog, zone: Zone) -> Stretches:
    """Entropy above 0.97 ln E and a router gradient below 1e-6 of the whole, for 100 steps."""
    planned = log.header["planned_steps"] or 0
    entropy_SL = log.per_router("entropy") / math.log(log.num_experts)
    norm_S1 = log.scalar("grad_norm")[:, None]
    over_SL = entropy_SL > 0.97 - 0.005 * zone
    over_SL &= log.per_router("grad_norm") < 1e-6 * (1 + 0.2 * zone) * norm_S1
    over_SL &= (log.steps > max(500, 0.3 * planned))[:, None]
    found = {
        name: lasting(log.steps, over_S, {-1: 105, 0: 100, 1: 90}[zone], zone.share)
        for name, over_S in zip(log.names, over_SL.T, strict=True)
    }
    return {name: stretches for name, stretches in found.items() if stretches}


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
    found = {
        name: lasting(log.steps[looks], over_N, times)
        for name, over_N in zip(log.names, over_NL.T, strict=True)
    }
    return {name: stretches for name, stretches in found.items() if stretches}


def settings(log: ArrayLog, zone: Zone) -> Stretches:
    """What the header gives away, by its name; and an auxiliary loss that pools its layers."""
    model, balance, last = log.header["model"], log.header["balance"], int(log.steps[-1])
    whole = [Stretch(1, 1, last)]
    found: Stretches = {}
    if model["top_k"] == 1 and model["norm_top_k"]:
        found["top-1 normalised"] = whole
    if balance["method"] == "none":
        found["no balancing"] = whole
    if balance["method"] == "aux":
        floor_S = np.abs(log.scalar("losses", "aux") / log.top_k - 1) <= 0.05 + 0.005 * zone
        effective_SL = collapse_index(log.counts_SLE, 0) * log.num_experts
        uneven_S = effective_SL.min(-1) < zone.below(0.5) * log.num_experts
        over_S = floor_S & uneven_S & (log.steps > WARM_UP)
        if over_S.any():
            found["aux pooled"] = lasting(log.steps, over_S, 1)
    return found


RULES: dict[str, Callable[[ArrayLog, Zone], Stretches]] = {
    "METER": oracle_load.meter,
    "COLLAPSE": oracle_load.collapse,
    "DEAD": oracle_load.dead,
    "STARVED": oracle_load.starved,
    "OVERLOAD": oracle_load.overload,
    "OSCILLATION": oracle_load.oscillation,
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
    c_SL = collapse_index(summed(log.counts_SLE, oracle_load.WINDOW), log.top_k)
    after = (log.steps > alarm) & (log.steps <= alarm + ahead)
    c_S = c_SL[after, log.names.index(layer)]
    if (c_S < 0.35).any():
        return "collapsed"
    cut_short = log.steps[-1] < alarm + ahead
    return "open" if cut_short and (not len(c_S) or c_S[-1] < c_S.min() + 0.02) else "no"
