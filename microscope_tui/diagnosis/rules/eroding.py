"""ERODING: a layer's load becomes steadily more uneven and is on its way to collapse."""

import math
from collections.abc import Sequence
from operator import add

import msgspec

from microscope_tui import measures
from microscope_tui.diagnosis.context import AtMost, Below, RuleLimits
from microscope_tui.diagnosis.episodes import Episode, Found, Reading, Readings, Severity
from microscope_tui.diagnosis.rules.base import Rule, number, stronger_balance
from microscope_tui.diagnosis.rules.collapse import CollapseLimits
from microscope_tui.diagnosis.signals import BALANCE, NAN, StepView
from microscope_tui.runlog import RunRecord, plural


class ErodingLimits(RuleLimits, frozen=True):
    """A public run without balancing goes c 0.60, 0.47, 0.36, 0.33, 0.25 at steps 100 … 500."""

    block: int = 5
    """Steps whose c is averaged to one point of the trend."""
    short: int = 12
    long: int = 40
    """Points of the two tested trends."""
    z: float = 3.29
    """Mann–Kendall: p < 0.001, two-sided."""
    ahead: int = 500
    """The slope must reach the limit of COLLAPSE within this many steps."""
    fall: float = 0.20
    """… and c must have lost this share of itself (one dead expert of eight costs 0.16), even
    without the busiest expert, which may be a hot one, and ``noise`` times its own scatter."""
    noise: float = 4.0
    level: float = 0.7
    """… and be below this: experts that specialise from an equal start settle at 0.75 and more …"""
    few_level: float = 0.6
    """… or, with fewer than eight of them, at 0.67."""
    steady: float = 0.5
    """Largest share of the fall in any sixth of the window: a sudden step is not erosion."""
    persistence: int = 3

    relations = (
        AtMost(8, "short"),
        Below("short", "long"),
        AtMost("long", 400),
        AtMost("level", 1),
        Below("fall", 1),
    )


class Memory(msgspec.Struct):
    """c of every router as means over blocks of lines."""

    sums: list[float] = []
    """Of c in the block that grows …"""
    filled: int = 0
    """… the lines in it …"""
    started: int = 0
    """… and its first step."""
    steps: list[int] = []
    """First step of every block."""
    blocks: list[list[float]] = []
    """Mean c of each router, one row per block."""


class Eroding(Rule[ErodingLimits, Memory]):
    name = "ERODING"
    subject = "Eroding balance"
    means = "The load of a layer becomes steadily more uneven. Acting early is cheap."
    formula = (
        "c is below 0.7 and falls (Mann–Kendall p < 0.001 over 60 or 200 logged steps), by more "
        "than its noise, and reaches the limit of COLLAPSE within 500 steps"
    )
    trains_only = True
    needs = BALANCE
    muted_by = ("COLLAPSE",)
    ends_in = ("COLLAPSE",)
    turn = 70
    cause_rank = 60
    low_is_bad = True
    family = "starvation"
    wants_balance = True

    def set_up(self) -> None:
        self.leave = 4 * self.limits.persistence
        self.collapse = self.context.limits.of(CollapseLimits)

    def restart(self, step: int) -> None:
        memory = self.memory
        ends = [*memory.steps[1:], memory.started if memory.filled else step + 1]
        kept = sum(end <= step for end in ends) if memory.steps else 0
        memory.steps = memory.steps[:kept]
        memory.blocks = memory.blocks[:kept]
        memory.filled = 0

    def read(self, view: StepView) -> Readings | None:
        signal, memory = view.plain_index, self.memory
        if signal is None:
            return None
        if not memory.filled:
            memory.sums = [0.0] * len(signal.values)
            memory.started = view.step
        memory.sums = list(map(add, memory.sums, signal.values))
        memory.filled += 1
        if memory.filled < self.limits.block:
            return None
        memory.steps.append(memory.started)
        memory.blocks.append([total / memory.filled for total in memory.sums])
        memory.filled = 0
        del memory.steps[: -self.limits.long], memory.blocks[: -self.limits.long]
        if len(memory.blocks) < self.limits.short:
            return None
        return self._trends(view)

    def _trends(self, view: StepView) -> Readings:
        found: Found = {}
        blocks, short = self.memory.blocks, self.limits.short
        now, then, first = blocks[-1], blocks[-short], blocks[0]
        judged = view.collapse_index
        for index, value in enumerate(now):
            if value != value:
                found[index] = None
            # Nothing has fallen by enough, in the short or the long window: the usual case.
            elif max(then[index], first[index]) * (1.0 - self.limits.fall) >= value:
                router = self.routers[index]
                level = self.limits.level if router.num_experts >= 8 else self.limits.few_level
                level *= self._ceiling(view, index)
                effective, load = (
                    view.value("effective_experts", index),
                    view.value("max_load", index),
                )
                rest = measures.without_busiest(effective, load, router.num_experts, router.top_k)
                found[index] = self._judge([row[index] for row in blocks], level, rest)
            elif not (judged and judged.values[index] >= self.collapse.leave):
                found[index] = Reading(severity=None)  # at its lowest: not a recovery
        return found

    def _ceiling(self, view: StepView, index: int) -> float:
        """c that a perfectly even router shows in a step: few tokens make it uneven by chance.

        Counts of N assignments lose (E − 1) ÷ 2N of their entropy (Miller 1955).
        """
        router, tokens = self.routers[index], view.tokens_of(index)
        if tokens is None:
            return 1.0
        lost = (router.num_experts - 1) / (2 * tokens * max(1, router.top_k))
        effective = router.num_experts * math.exp(-lost)
        return measures.collapse_index(effective, router.num_experts, router.top_k) or 1.0

    def _judge(self, series: list[float], level: float, rest: float | None) -> Reading:
        limits, floor = self.limits, self.collapse.warn
        for length in (limits.short, limits.long):
            steps, values = self._points(series, length)
            if len(values) < max(8, 0.8 * length):
                continue
            now, fallen = values[-1], values[0] - values[-1]
            enough = now < level and fallen > limits.fall * values[0]
            enough = enough and (rest is None or rest < (1.0 - limits.fall) * values[0])
            enough = enough and fallen > limits.noise * _scatter(values)
            if not (enough and _largest_drop(values) < limits.steady * fallen):
                continue  # the trend takes the longest
            slope, z = _trend(steps, values)
            slope = max(slope, _recent_slope(steps, values))
            if z < -limits.z and slope < 0 and now + slope * limits.ahead < floor:
                return Reading(
                    severity=Severity.WARN,
                    value=now,
                    limit=floor,
                    facts={"from": values[0], "left": max(1.0, (now - floor) / -slope)},
                    since=steps[_start(values)],
                )
        if clear := series[-1] >= self.collapse.leave:
            slope, _ = _trend(*self._points(series, limits.short))
            # Still falling, though not fast enough for an alarm: not a recovery.
            clear = not slope <= -limits.fall / (limits.long * limits.block)
        return Reading(severity=None, clear=clear)

    def _points(self, series: list[float], length: int) -> tuple[list[int], list[float]]:
        last = zip(self.memory.steps[-length:], series[-length:], strict=True)
        points = [(step, value) for step, value in last if value == value]
        return [step for step, _ in points], [value for _, value in points]

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        left = number(worst, "left")
        when = "reaches" if worst.active else "would have reached"
        then = f" and {when} {worst.limit:.2f} in about {plural(round(left), 'step')}"
        then = then if worst.value > worst.limit else f", below {worst.limit:.2f}"
        return (
            f"c fell from {number(worst, 'from'):.2f} to {worst.value:.2f}{then}",
            stronger_balance(run, worst) + (" now, while it is cheap" if worst.active else ""),
        )


def _trend(steps: Sequence[int], values: Sequence[float]) -> tuple[float, float]:
    """Theil–Sen slope per step, and the z of the Mann–Kendall test."""
    n = len(values)
    if n < 3:
        return 0.0, 0.0
    score, slopes = 0, []
    for i in range(n - 1):
        for j in range(i + 1, n):
            rise = values[j] - values[i]
            score += (rise > 0) - (rise < 0)
            slopes.append(rise / (steps[j] - steps[i]))
    spread = math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    z = (score - math.copysign(1, score)) / spread if score else 0.0
    slopes.sort()
    return slopes[len(slopes) // 2], z


def _recent_slope(steps: Sequence[int], values: Sequence[float]) -> float:
    """Slope from the third quarter to the last: a past step is not a trend."""
    quarter = max(2, len(values) // 4)
    last, before = slice(-quarter, None), slice(-2 * quarter, -quarter)
    run = sum(steps[last]) - sum(steps[before])
    return (sum(values[last]) - sum(values[before])) / run


def _largest_drop(values: Sequence[float]) -> float:
    """The largest drop within a sixth of the window; a sudden step drops at once."""
    reach = max(1, len(values) // 6)
    return max(a - b for a, b in zip(values, values[reach:], strict=False))


def _scatter(values: Sequence[float]) -> float:
    """Noise between points: a robust standard deviation without trend and curvature."""
    bends = sorted(
        abs(values[i - 1] - 2 * values[i] + values[i + 1]) for i in range(1, len(values) - 1)
    )
    return 1.4826 * bends[len(bends) // 2] / math.sqrt(6) if bends else NAN


def _start(values: Sequence[float]) -> int:
    noise = 2 * _scatter(values)
    best = values[0]
    start = 0
    for index, value in enumerate(values):
        if value >= best - noise:
            start = index
        best = max(best, value)
    return start
