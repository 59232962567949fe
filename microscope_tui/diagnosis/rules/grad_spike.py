"""GRADSPIKE: the gradient norm leaves its usual range, the first sign of a divergence."""

import math

import msgspec

from microscope_tui.diagnosis.context import AtMost, RuleLimits
from microscope_tui.diagnosis.episodes import (
    WHOLE_RUN,
    Episode,
    Reading,
    Readings,
    Reason,
    Severity,
)
from microscope_tui.diagnosis.rules.base import Rule, number
from microscope_tui.diagnosis.signals import StepView, Trail, median
from microscope_tui.runlog import RunRecord

_REFRESH = 10  # lines between two medians
_LEAST = 25  # kept values that make a reference: 50 steps
_RECENT = 10  # kept values that are too young to be a reference: 20 steps


class GradientLimits(RuleLimits, frozen=True):
    """Before a public collapse the gradient norm was × 56 fifteen steps earlier, then × 1e7."""

    ratio: float = 10.0
    raised: float = 2.0
    """Ratio that marks the onset: episodes are dated back to it."""
    once: float = 50.0
    """Ratio at which a single step is information, and critical if a divergence follows."""
    not_finite: int = 3
    """NaN or infinite norms in ``persistence`` steps: fp16 loss scaling skips single ones."""
    leave: float = 3.0
    followed: int = 50
    """LOGITS or COLLAPSE within this many steps afterwards makes it critical."""
    persistence: int = 10

    relations = (
        AtMost("not_finite", "persistence"),
        AtMost(1, "raised"),
        AtMost(1, "leave"),
        AtMost("raised", "ratio"),
        AtMost("leave", "ratio"),
        AtMost("ratio", "once"),
    )


class Memory(msgspec.Struct):
    past: Trail = msgspec.field(default_factory=lambda: Trail(every=2, size=110))
    """Gradient norms of earlier steps."""
    reference: float = 0.0
    """The usual norm: their median, without the latest."""
    raised_since: int | None = None
    """First step in a row with a norm above the limit."""
    lately: list[int] = []
    """Of the last steps: the step if its norm was NaN or infinite, else 0."""


class GradSpike(Rule[GradientLimits, Memory]):
    """Spikes of the whole model's gradient; LOGITS and COLLAPSE show which layer caused them."""

    name = "GRADSPIKE"
    subject = "Gradient spike"
    means = (
        "The gradient norm is many times what it was, or NaN. Before a public collapse it rose "
        "56-fold while the load still looked balanced."
    )
    formula = (
        "grad_norm above 10 × its median of t − 220 … t − 20 for 10 steps; NaN or infinite in 3 "
        "(critical: 9) of 10 steps; 50 ×, NaN or infinite once is information"
    )
    trains_only = True
    turn = 30
    cause_rank = 40
    family = "divergence"
    ends_after = 50

    def restart(self, step: int) -> None:
        # The steps of the previous attempt are as good a reference.
        self.memory.raised_since = None
        self.memory.lately = []

    def read(self, view: StepView) -> Readings | None:
        norm, memory, limits = view.record.grad_norm, self.memory, self.limits
        if norm is None:
            return None
        finite = math.isfinite(norm)
        warm = view.step > self.context.warm_up
        memory.lately.append(0 if finite else max(1, view.step))
        del memory.lately[: -limits.persistence]
        if not finite:
            return {WHOLE_RUN: self._not_finite(warm)}
        if norm < 0:
            return None
        usual = memory.reference
        memory.past.add(view.step, [norm])
        due = memory.past.seen % _REFRESH == 0 and len(memory.past.rows) >= _LEAST
        if due and (not usual or norm <= limits.ratio * usual):
            memory.reference = median(memory.past.column(0, 0, -_RECENT))
        raised = norm > limits.raised * usual > 0
        memory.raised_since = memory.raised_since or view.step if raised else None
        if not usual or norm <= limits.leave * usual:
            return {}
        sharp = warm and norm > limits.once * usual
        reading = Reading(
            severity=self._severity(sharp) if norm > limits.ratio * usual else None,
            value=norm / usual,
            limit=limits.ratio,
            certain=sharp,
            facts={"norm": norm, "usual": usual},
            since=memory.raised_since,
        )
        return {WHOLE_RUN: reading}

    def _severity(self, sharp: bool) -> Severity:
        track = self.tracks.get(WHOLE_RUN)
        few = track is None or track.over + 1 < self.needed
        return Severity.INFO if sharp and few else Severity.WARN

    def _not_finite(self, warm: bool) -> Reading:
        """Single ones are normal in fp16, where the loss scale is found by trial."""
        limits, steps = self.limits, [step for step in self.memory.lately if step]
        often = len(steps) >= limits.not_finite
        dtype = self.context.run.dtype
        severity: Severity | None = Severity.WARN
        if len(steps) >= self.needed:
            severity = Severity.CRITICAL
        elif not often:
            severity = None if "16" in dtype and "bf" not in dtype else Severity.INFO
        return Reading(
            severity=severity,
            value=float(len(steps)),
            limit=float(limits.not_finite),
            certain=warm and severity is not None,
            facts={"cause": Reason.NON_FINITE, "of": limits.persistence},
            since=steps[0],
        )

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        if worst.reason == Reason.NON_FINITE:
            return (
                f"the gradient norm is NaN or infinite in {worst.value:.0f} of "
                f"{number(worst, 'of'):.0f} steps: they are skipped, or corrupt the weights",
                "go back to a checkpoint with finite values, then lower the learning rate; in fp16 "
                "check whether the loss scale keeps falling",
            )
        return (
            f"a gradient norm of {number(worst, 'norm'):.3g}, "
            f"{worst.value:,.0f} times its median before step {worst.onset:,}",
            "clip the gradient norm, watch LOGITS, and skip or replay the batch if it returns",
        )
