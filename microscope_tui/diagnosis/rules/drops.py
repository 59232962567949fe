"""DROPS: tokens are dropped because experts are full."""

from heapq import nlargest

import msgspec

from microscope_tui.diagnosis.context import AtMost, Below, RuleLimits
from microscope_tui.diagnosis.episodes import Episode, Facts, Reading, Readings, graded
from microscope_tui.diagnosis.rules.base import Rule, number
from microscope_tui.diagnosis.signals import StepView
from microscope_tui.runlog import RunRecord


class DropLimits(RuleLimits, frozen=True):
    """A healthy run at capacity factor 1.25 drops 0.5 %; its diverging twin 28 to 56 %."""

    warn: float = 0.05
    critical: float = 0.20
    persistence: int = 25

    relations = (Below(0, "warn"), AtMost("warn", "critical"), AtMost("critical", 1))


class Memory(msgspec.Struct):
    held: dict[int, tuple[int, int]] = {}
    """Router → the expert that overflows alone, and since when."""


class Drops(Rule[DropLimits, Memory]):
    name = "DROPS"
    subject = "Dropped tokens"
    means = "Experts are at capacity: some tokens skip the layer, in training only."
    formula = "drop_rate above its limit in 90 % of 25 steps"
    ends_below = 0.5
    turn = 120
    cause_rank = 90

    def read(self, view: StepView) -> Readings | None:
        rates = view.signal("drop_rate")
        if rates is None:
            return None
        if rates.known and rates.low >= 0 and rates.high < self.limits.warn / 2:
            self.memory.held.clear()
            return {}
        return {i: self._judge(view, i, rate) for i, rate in enumerate(rates.values)}

    def _judge(self, view: StepView, index: int, rate: float) -> Reading | None:
        limits = self.limits
        if not 0.0 <= rate <= 1.0:
            return None
        severity = graded(rate, limits.warn, limits.critical)
        facts: Facts = {}
        if severity is not None and (counts := view.full_counts(index)):
            facts = self._fullest(view.step, index, counts, rate * sum(counts))
        return Reading(
            severity=severity,
            clear=rate < limits.warn / 2,
            value=rate,
            limit=limits.critical if rate > limits.critical else limits.warn,
            facts=facts,
        )

    def _fullest(self, step: int, index: int, counts: list[int], dropped: float) -> Facts:
        most, second = nlargest(2, [*counts, 0])
        alone = most - second >= 0.8 * dropped and 3 * dropped >= most
        fullest, held = counts.index(most), self.memory.held
        if not alone or held.get(index, (fullest, 0))[0] != fullest:
            held.pop(index, None)
        since = step
        if alone:
            _, since = held.setdefault(index, (fullest, step))
        if step - since < self.limits.persistence // 2:
            return {"fullest": fullest}
        return {"fullest": fullest, "since": since}

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        factor, expert = run.capacity_factor, f"expert {number(worst, 'fullest'):.0f}"
        more = "raise the capacity factor"
        if factor:
            more = f"raise capacity_factor from {factor:g} to {1.5 * factor:g}"
        by, remedy = f", most by {expert}", f"{more} or go dropless"
        if "fullest" not in worst.facts:
            by = ""
            remedy += ", and find out which expert overflows"
        if "since" in worst.facts:
            since = f"{expert} has held the overflow since step {number(worst, 'since'):,.0f}"
            remedy = f"{since}: look at its tokens (padding, a special token)"
        return (
            f"up to {worst.value:.0%} of the assignments are dropped{by} (limit {worst.limit:.0%})",
            remedy,
        )
