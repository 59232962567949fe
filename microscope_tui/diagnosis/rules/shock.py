"""SHOCK: the load fell onto few experts and came back within 50 steps."""

from collections.abc import Sequence

import msgspec

from microscope_tui.diagnosis.context import AtMost, Below, RuleLimits
from microscope_tui.diagnosis.episodes import Episode, Reading, Severity
from microscope_tui.diagnosis.rules.base import Rule, number
from microscope_tui.diagnosis.signals import BALANCE, StepView, Trail, median
from microscope_tui.runlog import RunRecord


class ShockLimits(RuleLimits, frozen=True):
    """A dip of c that is over within 50 steps: a learning-rate restart, a change of data."""

    drop: float = 0.25
    back: float = 0.10
    within: int = 50
    least_steps: int = 2

    relations = (Below("drop", 1), AtMost("back", "drop"), AtMost("least_steps", "within"))


class Dip(msgspec.Struct):
    """A fall of c that may come back."""

    since: int
    """First step below the usual c."""
    usual: float
    """c before it."""
    lowest: float
    steps: int = 1
    """Lines in it."""


class Memory(msgspec.Struct):
    usual: Trail = msgspec.field(default_factory=lambda: Trail(every=4, size=25))
    """c of every router in earlier lines."""
    dips: dict[int, Dip] = {}
    """Router → its fall, while it may come back."""


class Shock(Rule[ShockLimits, Memory]):
    """Reported afterwards: before the recovery it cannot be distinguished from a collapse."""

    name = "SHOCK"
    subject = "A routing shock"
    means = "The load of a layer fell onto few experts for some steps and recovered by itself."
    formula = "c falls by more than 0.25 below its median and returns within 50 steps"
    turn = 60
    cause_rank = 150
    needs = BALANCE
    low_is_bad = True

    def restart(self, step: int) -> None:
        self.memory.dips.clear()
        self.memory.usual.forget_from(step)

    def events(self, view: StepView) -> Sequence[tuple[int, Reading]]:
        # With all experts: an expert at about 95 % would make the judged index jump.
        signal, memory = view.plain_index, self.memory
        if signal is None or view.step <= self.context.warm_up:
            return ()
        found: list[tuple[int, Reading]] = []
        for index, dip in list(memory.dips.items()):
            value = signal.values[index]
            if value >= dip.usual - self.limits.back:
                del memory.dips[index]
                reading = Reading(
                    severity=Severity.INFO,
                    value=dip.lowest,
                    limit=dip.usual - self.limits.drop,
                    facts={"usual": dip.usual},
                    since=dip.since,
                    until=view.step,
                )
                found += [(index, reading)] if dip.steps >= self.limits.least_steps else []
            elif view.step - dip.since > self.limits.within:
                del memory.dips[index]  # not a shock: it lasts
            else:
                dip.steps = dip.steps + 1
                dip.lowest = min(dip.lowest, value)
        if len(memory.usual.rows) >= 5:
            self._look_for_falls(view.step, signal.values)
        memory.usual.add(view.step, signal.values)
        return found

    def _look_for_falls(self, step: int, values: Sequence[float]) -> None:
        past, low = self.memory.usual, 1.0 - self.limits.drop
        for index, value in enumerate(values):
            if value < low and index not in self.memory.dips:
                if not past.rows[-1][index] > value + self.limits.back / 2:
                    continue  # a layer that was low before does not fall
                if value < (usual := median(past.column(index))) - self.limits.drop:
                    self.memory.dips[index] = Dip(step, usual, value)

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        return (
            f"c fell from {number(worst, 'usual'):.2f} to {worst.value:.2f} and came back",
            "check whether the learning rate or the data changed at that step",
        )
