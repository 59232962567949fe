"""DIVERGED: the loss is NaN or infinite."""

import math

import msgspec

from microscope_tui.diagnosis.context import RuleLimits
from microscope_tui.diagnosis.episodes import WHOLE_RUN, Episode, Fact, Reading, Readings, Severity
from microscope_tui.diagnosis.rules.base import BACK, Rule, number
from microscope_tui.diagnosis.signals import StepView
from microscope_tui.runlog import RunRecord

_NOT_MEASURED = "not measured"


class DivergedLimits(RuleLimits, frozen=True):
    """Trainers that skip bad steps log a few in a row."""

    lines: int = 9


class Memory(msgspec.Struct):
    finite: int = 0
    """Lines in a row with a finite loss …"""
    measured: bool = False
    """… and whether they were ever enough."""
    lost: int = 0
    """Lines in a row with another one."""
    last: float | None = None
    """The last finite loss."""


class Diverged(Rule[DivergedLimits, Memory]):
    name = "DIVERGED"
    subject = "Loss not finite"
    means = (
        "The weights are lost, or every step is skipped; what the routers show is a consequence."
    )
    formula = (
        "loss NaN or infinite in 9 lines in a row, after 9 finite ones or beside a gradient, "
        "entropy or logit that is not finite either; else information"
    )
    trains_only = True
    turn = 25
    cause_rank = 12
    family = "divergence"
    announced_by = "GRADSPIKE"

    def set_up(self) -> None:
        self.window = self.needed = self.limits.lines

    def restart(self, step: int) -> None:
        """That the loss was finite stays known."""

    def read(self, view: StepView) -> Readings | None:
        loss, norm, memory = view.record.loss, view.record.grad_norm, self.memory
        if loss is None:
            return None
        if math.isfinite(loss):
            memory.finite += 1
            memory.measured = memory.measured or memory.finite >= self.limits.lines
            memory.lost = 0
            memory.last = loss
            return {}
        memory.finite = 0
        memory.lost += 1
        found, severity = "NaN" if loss != loss else "infinite", Severity.INFO
        if memory.lost >= self.limits.lines:
            more = view.not_finite() or not math.isfinite(norm or 0.0)
            if more or memory.measured:
                severity = Severity.CRITICAL
            else:
                found = f"{_NOT_MEASURED}: never finite in {self.limits.lines} lines in a row"
        facts: dict[str, Fact] = {"loss": found}
        if memory.last is not None:
            facts["last"] = memory.last
        return {WHOLE_RUN: Reading(severity, certain=True, facts=facts)}

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        loss = str(worst.facts.get("loss"))
        remedy = f"{BACK}, lower the learning rate, and look at the batch of that step"
        if loss.startswith(_NOT_MEASURED):
            remedy = "log the loss in every line, or in none"
        before = f", it was {number(worst, 'last'):.3g} before" if "last" in worst.facts else ""
        verb = "is" if worst.active else "was"
        return f"the loss {verb} {loss}{before}", remedy
