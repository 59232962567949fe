"""GRADSPIKE: the gradient norm leaves its usual range, the first sign of a divergence."""

import math

import msgspec

from microscope_tui.diagnosis.episodes import Episode
from microscope_tui.diagnosis.reading import WHOLE_RUN, Reading, Readings, Severity
from microscope_tui.diagnosis.rules.base import Rule, number
from microscope_tui.diagnosis.signals import StepView
from microscope_tui.diagnosis.windows import median
from microscope_tui.runlog.records import RunRecord

_EVERY, _SIZE, _RECENT, _REFRESH, _LEAST = 2, 110, 10, 5, 25


class Memory(msgspec.Struct):
    """Gradient norms of the past, every other step, and their median."""

    past: list[float] = []
    seen: int = 0
    reference: float = 0.0
    raised_since: int | None = None


class GradSpike(Rule):
    """Of the whole model: which layer is to blame shows in LOGITS and COLLAPSE."""

    name = "GRADSPIKE"
    subject = "Gradient spike"
    means = (
        "The gradient norm is many times what it was. Before a public collapse it rose 56-fold "
        "while the load still looked balanced."
    )
    formula = "grad_norm above 10 × its median of t − 220 … t − 20 for 10 steps, or 50 × once"
    trains_only = True

    def start(self) -> None:
        self.limits = self.context.limits.GRADSPIKE
        self.persist(self.limits.persistence, leave=50)
        self.memory: Memory = Memory()

    def restart(self, step: int) -> None:
        """The past of another attempt is as good a reference."""

    def read(self, view: StepView) -> Readings | None:
        norm, memory = view.record.grad_norm, self.memory
        if norm is None or not math.isfinite(norm) or norm < 0:
            return None
        if not memory.reference or norm <= self.limits.raised * memory.reference:
            memory.raised_since = None
        elif memory.raised_since is None:
            memory.raised_since = view.step
        reading = self._compare(norm, view.step > self.context.warm_up)
        memory.seen += 1
        if memory.seen % _EVERY == 0:
            memory.past.append(norm)
            del memory.past[:-_SIZE]
            calm = not memory.reference or norm <= self.limits.ratio * memory.reference
            if memory.seen % (_EVERY * _REFRESH) == 0 and len(memory.past) >= _LEAST and calm:
                memory.reference = median(memory.past[:-_RECENT])
        return {} if reading is None else {WHOLE_RUN: reading}

    def _compare(self, norm: float, warm: bool) -> Reading | None:
        limits, usual = self.limits, self.memory.reference
        if not usual or norm <= limits.leave * usual:
            return None
        ratio = norm / usual
        return Reading(
            severity=Severity.WARN if ratio > limits.ratio else None,
            value=ratio,
            limit=limits.ratio,
            certain=warm and ratio > limits.once,
            facts={"norm": norm, "usual": usual},
            since=self.memory.raised_since,
        )

    @staticmethod
    def why(worst: Episode, run: RunRecord) -> str:
        return (
            f"the gradient norm reached {number(worst, 'norm') or 0:.3g}, "
            f"{worst.value:,.0f} times its median of the last 200 steps"
        )

    @staticmethod
    def remedy(worst: Episode, run: RunRecord) -> str:
        return "clip the gradient norm, watch LOGITS, and skip or replay the batch if it returns"
