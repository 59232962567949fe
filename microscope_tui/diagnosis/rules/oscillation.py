"""OSCILLATION: the load swings with a period, driven by a bias that overshoots.

Per expert the sign of its deviation is one bit a step: a shift and a count of bits correlate it
with itself some steps later. Loads are shares: a step with more tokens is not a swing.
"""

import math
from collections.abc import Sequence
from itertools import pairwise, starmap
from operator import itemgetter, mul, sub
from statistics import fmean, median, pvariance

import msgspec

from microscope_tui import measures
from microscope_tui.diagnosis.context import AtMost, Below, RuleLimits
from microscope_tui.diagnosis.episodes import (
    Episode,
    Fact,
    Found,
    Reading,
    Readings,
    Reason,
    Severity,
)
from microscope_tui.diagnosis.rules.base import KNOBS, LEAST_SWING, Rule, number, turned
from microscope_tui.diagnosis.rules.collapse import CollapseLimits
from microscope_tui.diagnosis.signals import StepView, Trail
from microscope_tui.runlog import RunRecord

_NOTICE = 8  # steps before a check in which an uneven router is noticed
_IN_A_ROW = 4  # steps in a row with counts; METER may leave them out
_BEYOND = 3  # lags after the longest period at which a slower swing agrees even better
_TWICE = 0.75
"""Share of the steps up to which twice the period is tested; beyond, too few pairs remain."""


class OscillationLimits(RuleLimits, frozen=True):
    """Bias updates that are too large make the load swing with a period of 2 to 32 steps.

    A slower swing cannot be distinguished from data in blocks of 30 to 40 steps.
    """

    window: int = 64
    every: int = 128
    most: int = 1024
    """Steps between two checks: doubled after each that found nothing."""
    amplitude: float = 0.2
    """Standard deviation of an expert's load (a sine of amplitude 0.3 has 0.21)."""
    experts_share: float = 0.3
    agreement: float = 0.35
    """Correlation of the swing with itself one period later, and anticorrelation after half."""
    usual_step: float = 0.95
    """Three or more groups that take turns never disagree as much (−1/3 at most). They count where
    the median step has less than this share of the effective experts of the sum …"""
    overdispersion: float = 4.0
    """… minus counting noise of this variance: tokens of one sequence are correlated."""
    recurrence: float = 0.5
    """… and where the swing correlates so well with itself one period later and two, and so much
    better than in between. Irregular blocks of 5 to 15 steps reach 0.35 in 2 of 150 runs."""
    checks: int = 2
    least_move: float = 0.05
    """A bias that can move so far in half a period is the cause (a true loop: 1.2; alternating data
    at a rate of 0.001: 0.0035). One that is logged is, where in it …"""
    gain: float = 50.0
    """… the load swings by no more than this for each unit (true loops 3 to 41; the data 275), …"""
    follows: float = 0.6
    """… and follows it (true loops correlate by 0.72 or more; data of period 6 to 24 by 0.2)."""
    usual_c: float = 0.75
    """Alternating data is harmless where the median step is as even as this."""

    relations = (
        AtMost(4, "window"),
        AtMost("window", 1000),
        AtMost("every", "most"),
        Below("experts_share", 1),
        AtMost("agreement", 1),
        AtMost("recurrence", 1),
        AtMost("usual_step", 1),
    )


class Memory(msgspec.Struct):
    rows: dict[int, list[list[int]]] = {}
    """Router → counts of consecutive steps, while they are collected for a check."""
    biases: dict[int, list[list[float]]] = {}
    """Of the routers that swung in the check before."""
    first: int = 0
    """First step of these."""
    wait: int = 0
    """Lines until the next check may begin …"""
    uneven: set[int] = set()
    """Routers that were recently uneven: at its turning point a swing looks even."""
    pause: int = 0
    """… and the length of the latest pause, which doubles while nothing is found."""
    counted: int = -2
    """The last step with counts."""
    in_a_row: int = 0
    """Longest run of consecutive steps with counts: a swing needs several."""
    past: Trail = msgspec.field(default_factory=lambda: Trail(every=8, size=160))
    """Effective experts, to date a swing: checks are rare."""
    swings: dict[int, float] = {}
    """Router → the amplitude of its swing in the latest check."""


class Oscillation(Rule[OscillationLimits, Memory]):
    """Checks some consecutive steps from time to time."""

    name = "OSCILLATION"
    subject = "Oscillating load"
    means = (
        "Groups of experts are overloaded and starved in turn: the sum over some steps is even, "
        "single steps are not. The bias update overshoots, or the data alternates."
    )
    formula = (
        "more than 30 % of the experts swing by σ > 0.2 of their fair share, agree with "
        "themselves one period (2 … 32 steps) later and disagree after half of it; or, where the "
        "sum of the steps is even and most single steps are not, at any time in between. Two "
        "checks of 64 steps. Not observable: slower swings, which look like data in blocks, and "
        "any swing where counts are not logged at every step"
    )
    trains_only = True
    turn = 150
    cause_rank = 70

    def set_up(self) -> None:
        self.window = self.needed = self.limits.checks
        self.leave = 2

    def read(self, view: StepView) -> Readings | None:
        memory = self.memory
        if memory.in_a_row < _IN_A_ROW and any([view.has_counts, *map(max, view.sums.values())]):
            memory.in_a_row = memory.in_a_row + 1 if view.step == memory.counted + 1 else 1
            memory.counted = view.step
        if (effective := view.signal("effective_experts")) is not None:
            memory.past.add(view.step, effective.values)
        if memory.wait <= _NOTICE:
            memory.uneven |= self._suspects(view)
        if memory.wait > 0:
            memory.wait -= 1
            return None
        if not memory.rows and not self._begin(view.step):
            return None
        known = len(next(iter(memory.rows.values())))
        for index in list(memory.rows):
            counts = view.full_counts(index) if view.step == memory.first + known else None
            if counts is None or not any(counts):
                del memory.rows[index]
            else:
                memory.rows[index].append(counts)
        for index, biases in memory.biases.items():
            biases.extend(filter(None, (view.biases(index),)))
        if not memory.rows:
            self._rest()  # no swing can be detected where steps or counts are missing
        elif known + 1 >= self.limits.window:
            return self._judge()
        return None

    def _begin(self, step: int) -> bool:
        memory = self.memory
        suspects = self.tracks.keys() | memory.uneven
        memory.uneven = set()
        memory.rows = {index: [] for index in suspects}
        memory.biases = {index: [] for index in self.tracks}
        memory.first = step
        return bool(suspects)

    def swing(self) -> float:
        return max(self.memory.swings.values(), default=0.0)  # the others are below half the limit

    def blind_to(self) -> str | None:
        short = self.memory.in_a_row < _IN_A_ROW
        return "a swing shows only in the counts of consecutive steps" if short else None

    def _rest(self) -> None:
        memory, limits = self.memory, self.limits
        memory.rows = {}
        memory.wait = memory.pause = min(limits.most, max(limits.every, 2 * memory.pause))

    def _suspects(self, view: StepView) -> set[int]:
        """Uneven enough in this step for such a swing; for half of it before any look."""
        loads, effective = view.signal("max_load"), view.signal("effective_experts")
        if loads is None or effective is None or view.step <= self.context.warm_up:
            return set()
        limits, seen = self.limits, self.memory.swings
        # exp(−CV²/2) of a load that swings half as much and no more.
        most = 1.0 - limits.experts_share * (limits.amplitude / 2) ** 2 / 3
        found = set()
        for index, router in enumerate(self.routers):
            amplitude = limits.amplitude / 2
            if index in seen:
                amplitude = limits.amplitude
            high = loads.values[index] > 1.0 + amplitude
            if high and effective.values[index] < most * router.num_experts:
                found.add(index)
        return found

    def _judge(self) -> Readings:
        memory = self.memory
        memory.in_a_row = _IN_A_ROW
        found: Found = {i: None for i in self.tracks if i not in memory.rows}
        for index, rows in memory.rows.items():
            period, share, memory.swings[index] = self._swing(index, rows)
            if period:
                found[index] = self._reading(index, rows, period, share)
        if any(found.values()):  # a swing is checked again at once: two in a row are an alarm
            memory.rows = {}
            memory.pause = 0
        else:
            self._rest()
        return found

    def _began(self, index: int) -> int:
        past, first = self.memory.past, self.memory.first
        at = _change([row[index] for row in past.rows])
        return first if at is None else min(first, past.steps[at])

    def _swing(self, index: int, rows: list[list[int]]) -> tuple[int, float, float]:
        """Period or 0, the share of experts that swing, and √2 σ of their load."""
        limits, steps, experts = self.limits, len(rows), len(rows[0])
        least = int(limits.experts_share * experts) + 1
        totals = list(map(sum, rows))
        noise = limits.overdispersion * experts * steps / sum(totals)
        some = min((limits.amplitude / 4) ** 2 + noise, limits.amplitude**2)
        if most_beyond(rows, totals, some) <= limits.experts_share * experts:
            return 0, 0.0, 0.0  # the usual case
        wide = sorted(spreads(rows), key=itemgetter(0), reverse=True)
        share = sum(variance > limits.amplitude**2 for variance, _ in wide) / experts
        variance = wide[least - 1][0] - noise
        if share <= limits.experts_share and variance <= (limits.amplitude / 4) ** 2:
            return 0, 0.0, 0.0
        masks = [signs(loads) for _, loads in wide[: max(least, round(share * experts))]]
        period = to_and_fro(masks, steps, limits.agreement)
        returns = period or recurring(masks, steps, limits.recurrence)
        if share <= limits.experts_share:
            period = 0
        elif not period and self._even_in_the_sum_alone(index, rows):
            period = returns
        if period:
            variance = max(limits.amplitude**2, variance)
        else:
            share = 0.0
        if not returns:
            variance = 0.0
        return period, share, math.sqrt(2.0 * max(0.0, variance))

    def _even_in_the_sum_alone(self, index: int, rows: list[list[int]]) -> bool:
        """Most steps are more uneven than the sum of all, and than chance makes them."""
        summed = [sum(column) for column in zip(*rows, strict=True)]
        even, experts = measures.effective_experts(summed) or 0.0, len(summed)
        c = measures.collapse_index(even, experts, self.routers[index].top_k) or 0.0
        chance = math.exp(-self.limits.overdispersion * experts * len(rows) / (2 * sum(summed)))
        sound = c >= self.context.limits.of(CollapseLimits).warn  # below it COLLAPSE reports
        return sound and _usual(rows) < self.limits.usual_step * chance * even

    def _reading(self, index: int, rows: list[list[int]], period: int, share: float) -> Reading:
        """The data causes a swing that the bias cannot; it may be harmless."""
        limits, memory, balance = self.limits, self.memory, self.context.run.balance
        severity = Severity.WARN
        facts: dict[str, Fact] = {"period": period}
        biases, known = memory.biases.get(index, []), balance.get("bias_update_rate")
        rate = configured = known if isinstance(known, int | float) else math.inf
        least, logged = limits.least_move, len(biases) == len(rows)
        if logged:
            rate = fmean(abs(b - a) for pair in pairwise(biases) for a, b in zip(*pair))  # noqa: B905
            if following(rows, biases) >= limits.follows:
                least = min(least, memory.swings[index] / limits.gain)
            facts["moves"] = rate if rate > 2 * configured else 0.0
        moves = rate * period / 2
        again = index in memory.biases and balance.get("method") not in ("aux", "none")
        if moves < least and again:
            memory.swings[index] = 0.0
            facts = {"period": period, "cause": Reason.ALTERNATING, "moves": moves}
            c = measures.collapse_index(_usual(rows), len(rows[0]), self.routers[index].top_k)
            if logged or (c or 0.0) >= limits.usual_c:
                severity = Severity.INFO
        return Reading(
            severity=severity,
            value=share,
            limit=limits.experts_share,
            facts=facts,
            since=self.track(index).dated or self._began(index),
        )

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        why = (
            f"{worst.value:.0%} of the experts are overloaded and starved in turn, with a "
            f"period of {number(worst, 'period'):.0f} steps"
        )
        if worst.reason == Reason.ALTERNATING:
            why += f", in half of which the bias moves by at most {number(worst, 'moves'):.2g}: "
            why += "data or micro-batches alternate"
            remedy = "check whether they do, and mix the kinds of data within each batch"
            if worst.warns:
                why += ", or the update of the bias overshoots"
                remedy += "; else average the load over more steps before each update"
            return why, remedy
        if moves := number(worst, "moves"):
            return (
                why,
                f"find what moves the bias by {moves:.2g} a step: the header has another rate",
            )
        # The swing of a sign update is proportional to its rate: aim at half of the limit.
        factor = LEAST_SWING / 2 / max(LEAST_SWING, number(worst, "swing"))
        weaker = turned(run, factor, "lower", "weaken the load balancing")
        method = run.balance.get("method")
        remedy = f"{weaker}, or average the load over more steps before each update"
        if method == "none":
            remedy = (
                "no enabled balancing could overshoot: check whether the data alternates, and "
                "whether counts and tokens cover the same micro-batches"
            )
        elif method == "aux":
            remedy = f"check whether data or micro-batches alternate; if they do not, {weaker}"
        elif method not in KNOBS:
            remedy = f"if these layers are balanced, {remedy}; if not, check the data"
        return why, remedy


def _usual(rows: Sequence[Sequence[int]]) -> float:
    return median(measures.effective_experts(row) or 0.0 for row in rows)


def _change(values: Sequence[float]) -> int | None:
    """Index at which the mean drops most clearly; least squares."""

    def explained(at: int) -> float:
        fall = fmean(values[:at]) - fmean(values[at:])
        return max(0.0, fall) ** 2 * at * (len(values) - at) / len(values) ** 2

    clearest = max(range(1, len(values)), key=explained, default=0)
    enough = clearest and explained(clearest) > 0.4 * pvariance(values)
    return clearest if enough else None


def spreads(rows: Sequence[Sequence[int]]) -> list[tuple[float, list[float]]]:
    """The variance of every expert's load, and the load, as a share of the fair one."""
    steps, experts = len(rows), len(rows[0])
    scales = [experts / max(1, sum(row)) for row in rows]
    found = []
    for column in zip(*rows, strict=True):
        loads = list(map(mul, column, scales))
        mean = sum(loads) / steps
        found.append((sum(map(mul, loads, loads)) / steps - mean * mean, loads))
    return found


def most_beyond(rows: Sequence[Sequence[int]], totals: Sequence[int], variance: float) -> int:
    """An upper bound of the experts whose load varies by more, quickly if the totals are equal."""
    if min(totals) < max(totals):
        return len(rows[0])
    columns, steps = list(zip(*rows, strict=True)), len(rows)
    most = (1.0 - 1e-6) * variance * (sum(totals) / len(rows[0])) ** 2
    pairs = zip(starmap(math.hypot, columns), map(sum, columns), strict=True)
    return sum([steps * h * h - (1.0 - 1e-12) * total * total > most for h, total in pairs])


def following(rows: Sequence[Sequence[int]], biases: Sequence[Sequence[float]]) -> float:
    """Correlation of the load with the bias that routed it: of its line or the one before."""
    size, bias = len(rows[0]), _flat(biases)
    load = _flat([[n / sum(row) for n in row] for row in rows])
    later, same = sum(map(mul, bias[size:], load)), sum(map(mul, bias, load))
    earlier = sum(map(mul, bias, load[size:]))
    # After the bias that routed it, the load turns it: there the correlation falls most.
    routed: float = earlier if earlier - same > 0.8 * (same - later) else same
    return routed / (math.hypot(*load) * math.hypot(*bias) or 1.0)


def _flat(rows: Sequence[Sequence[float]]) -> list[float]:
    """Deviations from the means of column and row."""
    means = list(map(fmean, zip(*rows, strict=True)))
    wide = [list(map(sub, row, means)) for row in rows]
    return [value - mean for row in wide for mean in (fmean(row),) for value in row]


def signs(loads: Sequence[float]) -> int:
    """A bit for each step in which the load is above its mean."""
    mean = sum(loads) / len(loads)
    return sum((load > mean) << step for step, load in enumerate(loads))


def to_and_fro(masks: Sequence[int], steps: int, limit: float) -> int:
    """Period after which the bits agree, but not after half of it; 0 for none."""
    lags = range(1, min(steps, steps // 2 + _BEYOND + 1))
    agreement = [0.0, *(_agreement(masks, steps, lag) for lag in lags)]
    swings = {
        period: agreement[period]
        for period in range(2, steps // 2 + 1)  # after half of it: the lower of two lags
        if agreement[period] >= limit
        and min(agreement[period // 2], agreement[(period + 1) // 2]) <= -limit
    }
    return _shortest(swings, agreement, steps // 2)


def recurring(masks: Sequence[int], steps: int, limit: float) -> int:
    """Period after which a pattern of any form repeats; 0 for none.

    The bits meet more often than by chance, and less often in between: a block of data that lasts
    meets itself less and less often and does not come back.
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
    return _shortest(swings, known, steps // 2)


def _shortest(swings: dict[int, float], values: Sequence[float], longest: int) -> int:
    """Of the clear ones; none where the values still rise after the longest."""
    clear = max(swings.values(), default=0.0) - 0.05
    found = min((period for period, value in swings.items() if value >= clear), default=0)
    slower = found >= longest - _BEYOND and max(values[longest + 1 :][:_BEYOND]) > values[found]
    return 0 if slower else found


def _agreement(masks: Sequence[int], steps: int, lag: int) -> float:
    """Mean correlation with themselves ``lag`` steps later: −1 … 1."""
    pairs = steps - lag
    keep = (1 << pairs) - 1
    differing = sum(((mask ^ (mask >> lag)) & keep).bit_count() for mask in masks)
    return 1.0 - 2.0 * differing / (pairs * len(masks))
