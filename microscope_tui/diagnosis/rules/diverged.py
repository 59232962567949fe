"""DIVERGED: the loss is NaN or infinite."""

import math

import msgspec

from microscope_tui.diagnosis.context import RuleLimits
from microscope_tui.diagnosis.episodes import WHOLE_RUN, Episode, Reading, Readings, Severity
from microscope_tui.diagnosis.rules.base import BACK, Rule, number
from microscope_tui.diagnosis.signals import StepView
from microscope_tui.runlog import RunRecord, plural


class DivergedLimits(RuleLimits, frozen=True):
    """A trainer that skips bad steps logs a few of them in a row."""

    lines: int = 9
    """Lines in a row without a finite loss; as many finite ones show that it was measured."""


class Memory(msgspec.Struct):
    finite: int = 0
    lines: int = 0
    """The last ones, in a row, without a finite loss …"""
    since: int = 0
    """… and the step of the first of them."""


class Diverged(Rule[DivergedLimits, Memory]):
    name = "DIVERGED"
    subject = "Loss not finite"
    means = (
        "The loss is NaN or infinite and stays so: the weights are lost, or every step is skipped. "
        "What the routers show since then is a consequence."
    )
    formula = (
        "loss NaN or infinite in 9 lines in a row, after 9 finite ones or beside a gradient, "
        "entropy or logit that is not finite either; information below that"
    )
    trains_only = True
    turn = 25
    cause_rank = 12
    family = "divergence"
    announced_by = "GRADSPIKE"
    rolls_back_in = ("pretrain", "finetune")

    def restart(self, step: int) -> None:
        self.memory.lines = 0  # that the loss was finite stays known

    def read(self, view: StepView) -> Readings | None:
        memory, loss = self.memory, view.record.loss
        if loss is None:
            return None
        if math.isfinite(loss):
            memory.finite += 1
            memory.lines = 0
            return {}
        memory.since = memory.since if memory.lines else view.step
        memory.lines += 1
        known = memory.finite >= self.limits.lines
        over = memory.lines >= self.limits.lines
        lost = over and (known or self._beside(view))
        reading = Reading(
            severity=Severity.CRITICAL if lost else Severity.INFO,
            certain=True,
            value=float(memory.lines),
            limit=float(self.limits.lines),
            facts={
                "loss": "NaN" if loss != loss else "infinite",
                "unknown": float(over and not (known or lost)),
            },
            since=memory.since,
        )
        return {WHOLE_RUN: reading}

    def _beside(self, view: StepView) -> bool:
        """Whether anything else is not finite."""
        norm = view.record.grad_norm
        return bool(view.of_routers_not_finite()) or not math.isfinite(norm or 0.0)

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        what = f"the loss is {worst.facts.get('loss')}"
        if number(worst, "unknown"):
            return f"{what} in every line, all else is finite: it is not measured", "log the loss"
        return (
            f"{what} in {plural(int(worst.value), 'line')} in a row",
            f"{BACK}, lower the learning rate, and look at the batch of step {worst.onset:,}",
        )
