"""DIVERGED: the loss is NaN or infinite."""

import math

import msgspec

from microscope_tui.diagnosis.context import RuleLimits
from microscope_tui.diagnosis.episodes import WHOLE_RUN, Episode, Reading, Readings, Severity
from microscope_tui.diagnosis.rules.base import BACK, Rule
from microscope_tui.diagnosis.signals import StepView
from microscope_tui.runlog import RunRecord


class DivergedLimits(RuleLimits, frozen=True):
    """Trainers that skip bad steps log a few in a row."""

    lines: int = 9


class Memory(msgspec.Struct):
    finite: int = 0
    """Lines with a finite loss."""


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
        loss, norm = view.record.loss, view.record.grad_norm
        if loss is None:
            return None
        if math.isfinite(loss):
            self.memory.finite += 1
            return {}
        found, severity = "NaN" if loss != loss else "infinite", Severity.INFO
        track = self.tracks.get(WHOLE_RUN)
        if track is not None and track.over + 1 >= self.needed:
            more = view.not_finite_routers() or not math.isfinite(norm or 0.0)
            if more or self.memory.finite >= self.needed:
                severity = Severity.CRITICAL
            else:
                found = "not measured: it was never finite"
        return {WHOLE_RUN: Reading(severity, certain=True, facts={"loss": found})}

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        remedy = f"{BACK}, lower the learning rate, and look at the batch of that step"
        return f"the loss is {worst.facts.get('loss')}", remedy
