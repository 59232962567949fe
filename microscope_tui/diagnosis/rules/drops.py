"""DROPS: tokens are dropped because experts are full."""

from microscope_tui.diagnosis.context import RuleLimits
from microscope_tui.diagnosis.episodes import Episode, Reading, Readings, graded
from microscope_tui.diagnosis.rules.base import Nothing, Rule, number
from microscope_tui.diagnosis.signals import StepView
from microscope_tui.runlog import RunRecord


class DropLimits(RuleLimits, frozen=True):
    """A healthy run at capacity factor 1.25 drops 0.5 %; its diverging twin 28 to 56 %."""

    warn: float = 0.05
    critical: float = 0.20
    persistence: int = 25

    relations = "0 < warn, warn <= critical, critical <= 1"


class Drops(Rule[DropLimits, Nothing]):
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
            return {}
        return {i: self._judge(view, i, rate) for i, rate in enumerate(rates.values)}

    def _judge(self, view: StepView, index: int, rate: float) -> Reading | None:
        limits = self.limits
        if not 0.0 <= rate <= 1.0:
            return None
        severity = graded(rate, limits.warn, limits.critical)
        counts = view.full_counts(index) if severity is not None else None
        return Reading(
            severity=severity,
            clear=rate < limits.warn / 2,
            value=rate,
            limit=limits.critical if rate > limits.critical else limits.warn,
            facts={"fullest": counts.index(max(counts))} if counts else {},
        )

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        factor = run.capacity_factor
        more = "raise the capacity factor"
        if factor:
            more = f"raise capacity_factor from {factor:g} to {1.5 * factor:g}"
        by = f", most by expert {number(worst, 'fullest'):.0f}" if "fullest" in worst.facts else ""
        return (
            f"up to {worst.value:.0%} of the assignments are dropped{by} (limit {worst.limit:.0%})",
            f"{more} or go dropless{'' if by else ', and find out which expert overflows'}",
        )
