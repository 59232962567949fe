"""LOGITS: the router's logits explode."""

import msgspec

from microscope_tui.diagnosis.context import CRITICAL_FIRST, ENDS_INSIDE, NEVER_ENDS, RuleLimits
from microscope_tui.diagnosis.episodes import Episode, Reading, Readings, Severity, graded
from microscope_tui.diagnosis.rules.base import Rule, calm_down, number
from microscope_tui.diagnosis.signals import Signal, StepView, Trail, median
from microscope_tui.runlog import RunRecord

_REFRESH = 5  # kept values between two medians: 20 steps
_LEAST = 25  # kept values that make a reference: 100 steps
_RECENT = 5  # kept values that are too young to be a reference: 20 steps


class LogitLimits(RuleLimits, frozen=True):
    """Ratios to the median of the steps t − 220 … t − 20: robust to slow growth."""

    warn: float = 3.0
    critical: float = 10.0
    leave: float = 1.5
    least: float = 1.0
    """A z-loss below this never counts as an explosion."""
    max_logit: float = 64.0
    """In bf16, adjacent logits of this size are at least 0.25 apart."""
    persistence: int = 10

    relations = (
        ("1 <= leave", f"{NEVER_ENDS}: 1 is the usual value"),
        ("leave <= warn", ENDS_INSIDE),
        ("warn <= critical", CRITICAL_FIRST),
        ("0 < max_logit", "every logit would be too large"),
    )


class Memory(msgspec.Struct):
    """z-loss of the past, and its median per router."""

    past: Trail
    reference: list[float] = []
    fresh: int = 0
    raised_since: dict[int, int] = {}


class Logits(Rule[LogitLimits, Memory]):
    """The z-loss against its own past, and the largest logit against what bf16 can hold."""

    name = "LOGITS"
    subject = "Exploding router logits"
    means = (
        "The logits of a router grow far beyond their usual size. This precedes a divergence: the "
        "softmax saturates, one expert wins every token, the gradient vanishes or explodes."
    )
    formula = (
        "z-loss above 3 × (critical: 10 ×) its median of the steps t − 220 … t − 20, for 10 steps; "
        "or a logit above 64 in bf16"
    )
    trains_only = True
    turn = 40
    cause_rank = 30
    family = "divergence"
    ends_after = 50
    announced_by = "GRADSPIKE"
    rolls_back_in = ("pretrain", "finetune")

    def start(self) -> None:
        self.memory = Memory(past=Trail(every=4, size=55))

    def restart(self, step: int) -> None:
        self.memory.past.forget_from(step)
        self.memory.raised_since.clear()

    def read(self, view: StepView) -> Readings | None:
        z_loss = view.signal("z_loss")
        largest = view.signal("max_logit") if "bf" in self.context.run.dtype else None
        if z_loss is None and largest is None:
            return None
        found: dict[int, Reading | None] = {}
        if z_loss is not None:
            self._compare(view.step, z_loss, found)
            if self.memory.past.add(view.step, z_loss.values):
                self._refresh(z_loss)
        limit = self.limits.max_logit
        for index, value in enumerate(largest.values if largest is not None else ()):
            if value > limit / 1.3:
                of_range = Reading(
                    severity=Severity.WARN if value > limit else None,
                    value=value / limit,
                    limit=1.0,
                    facts={"cause": "range", "logit": value, "most": limit},
                )
                found[index] = max(found.get(index) or of_range, of_range, key=_gravity)
        return found

    def _compare(self, step: int, z_loss: Signal, found: dict[int, Reading | None]) -> None:
        limits, raised = self.limits, self.memory.raised_since
        if not self.memory.reference or z_loss.high <= limits.least / limits.warn:
            raised.clear()
            return
        pairs = zip(z_loss.values, self.memory.reference, strict=True)
        for index, (value, usual) in enumerate(pairs):
            if not value > limits.leave * usual:
                raised.pop(index, None)
                if value != value:
                    found[index] = None
            else:
                ratio = value / max(usual, 1e-12)
                high = value >= limits.least
                found[index] = Reading(
                    severity=graded(ratio, limits.warn, limits.critical) if high else None,
                    value=ratio,
                    limit=limits.critical if ratio > limits.critical else limits.warn,
                    facts={"z": value, "usual": usual},
                    since=raised.setdefault(index, step),
                )

    def _refresh(self, z_loss: Signal) -> None:
        memory = self.memory
        memory.fresh += 1
        if memory.fresh < _REFRESH or len(memory.past.rows) < _RECENT + _LEAST:
            return
        memory.fresh = 0
        before = memory.reference
        memory.reference = [
            # An explosion never becomes the reference.
            before[i] if before and z_loss.values[i] > self.limits.warn * before[i]
            else median(memory.past.column(i, 0, -_RECENT))
            for i in range(len(self.routers))
        ]  # fmt: skip

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        why = (
            f"the z-loss is {worst.value:,.1f} times its median of the last 200 logged steps "
            f"({number(worst, 'z'):.3g} against {number(worst, 'usual'):.3g})"
        )
        if worst.facts.get("cause") == "range":
            logit, most = number(worst, "logit"), number(worst, "most")
            why = f"a router logit of {logit:.0f} in bf16 (limit {most:.0f})"
        return why, calm_down(run)


def _gravity(reading: Reading) -> tuple[int, float]:
    """How severe; of equal ones, how far beyond its limit."""
    return reading.severity or 0, reading.value / max(reading.limit, 1e-12)
