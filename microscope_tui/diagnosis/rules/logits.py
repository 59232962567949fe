"""LOGITS: the router's logits explode."""

import math

import msgspec

from microscope_tui.diagnosis.context import AtMost, Below, RuleLimits
from microscope_tui.diagnosis.episodes import (
    Episode,
    Fact,
    Found,
    Reading,
    Readings,
    Reason,
    Severity,
    graded,
)
from microscope_tui.diagnosis.rules.base import Rule, calm_down, number
from microscope_tui.diagnosis.rules.collapse import CollapseLimits
from microscope_tui.diagnosis.rules.grad_spike import GradientLimits
from microscope_tui.diagnosis.signals import NAN, FirstValues, Signal, StepView, Trail, median
from microscope_tui.runlog import RunRecord

_REFRESH = 20  # lines between two medians
_LEAST = 25  # kept values that make a reference: 100 steps
_RECENT = 5  # kept values that are too young to be a reference: 20 steps
_FIRST = 3  # lines before the warm-up changes the logits


class LogitLimits(RuleLimits, frozen=True):
    """Ratios to the median of the steps t − 220 … t − 20: robust to slow growth."""

    warn: float = 3.0
    critical: float = 10.0
    leave: float = 1.5
    least: float = 1.0
    """A z-loss below this never counts as an explosion."""
    max_logit: float = 64.0
    """In bf16, adjacent logits of this size are at least 0.25 apart."""
    certain: float = 0.02
    """Token entropy ÷ ln E of a saturated softmax. Mixtral at 40 times its learning rate had z × 40
    and this in 40 steps and stayed collapsed; at 10 times it had z × 6 and recovered."""
    grown: float = 30.0
    """Growth since the first lines that warns by itself above 2 (ln E)². Healthy: up to 6."""
    persistence: int = 10

    relations = (
        AtMost(1, "leave"),
        AtMost("leave", "warn"),
        AtMost("warn", "critical"),
        Below(0, "max_logit"),
    )


class Memory(msgspec.Struct):
    past: Trail = msgspec.field(default_factory=lambda: Trail(every=4, size=55))
    """z-loss of every router in earlier lines, and the gradient norm."""
    reference: list[float] = []
    """The usual values of these; empty before there are enough."""
    raised_since: dict[int, int] = {}
    """Router → first step in a row above the limit."""
    first: FirstValues = msgspec.field(default_factory=lambda: FirstValues(_FIRST))
    """z-loss of every router in the first lines, and the gradient norm."""
    settled: set[int] = set()
    """Routers whose reference is of their past, not of the first lines."""


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
        "in the warm-up above 10 × the first lines, beside c below 0.35, token entropy below 2 % "
        "of ln E or grad_norm above 10 × its first lines; a warning above 30 × and 2 (ln E)²; or a "
        "logit above 64 in bf16"
    )
    trains_only = True
    turn = 40
    cause_rank = 30
    family = "divergence"
    ends_after = 50
    announced_by = "GRADSPIKE"
    rolls_back_in = ("pretrain", "finetune")

    def set_up(self) -> None:
        self.large = [2.0 * math.log(r.num_experts or 1) ** 2 for r in self.routers]

    def restart(self, step: int) -> None:
        self.memory.past.forget_from(step)
        self.memory.first.forget_from(step)
        self.memory.raised_since.clear()

    def read(self, view: StepView) -> Readings | None:
        z_loss = view.signal("z_loss")
        largest = view.signal("max_logit") if "bf" in self.context.run.dtype else None
        if z_loss is None and largest is None:
            return None
        found: Found = {}
        if z_loss is not None:
            norm = view.record.grad_norm
            if norm is None:
                norm = NAN
            self.memory.first.add(view.step, [*z_loss.values, norm])
            self._compare(view, z_loss, found)
            self._add_grown(z_loss, found)
            self.memory.past.add(view.step, z_loss.values)
            if self.memory.past.seen % _REFRESH == 0:
                self._refresh(z_loss)
        limit = self.limits.max_logit
        for index, value in enumerate(largest.values if largest is not None else ()):
            if value > limit / 1.3:
                of_range = Reading(
                    severity=graded(value, limit),
                    value=value / limit,
                    limit=1.0,
                    facts={"cause": Reason.OUT_OF_RANGE, "logit": value, "most": limit},
                )
                known = found.get(index) or of_range  # the graver one
                found[index] = max(known, of_range, key=lambda reading: reading.severity or 0)
        return found

    def _compare(self, view: StepView, z_loss: Signal, found: Found) -> None:
        limits, memory, raised = self.limits, self.memory, self.memory.raised_since
        reference = memory.reference or self._first()
        if z_loss.high <= limits.least / limits.warn:
            raised.clear()
            return
        for index, (value, usual) in enumerate(zip(z_loss.values, reference, strict=True)):
            if not value > limits.leave * usual:
                raised.pop(index, None)
                if value != value:
                    found[index] = None
                continue
            ratio = value / max(usual, 1e-12)
            since = raised.setdefault(index, view.step)
            severity = graded(ratio, limits.warn, limits.critical)
            facts: dict[str, Fact] = {"z": value, "usual": usual}
            if early := index not in memory.settled:  # as long as it lasts
                sign = self._early_sign(view, index, ratio)
                if not sign:
                    continue
                severity = Severity.CRITICAL
                facts["sign"] = sign
            if value < limits.least:
                severity = None
            found[index] = Reading(
                severity=severity,
                value=ratio,
                limit=limits.critical if ratio > limits.critical else limits.warn,
                settled=early,
                facts=facts,
                since=since,
            )

    def _first(self) -> list[float]:
        """The z-loss of the first lines, at least that of even logits."""
        usual, evens = self.memory.first.usual, [math.log(r.num_experts or 1) for r in self.routers]
        return [max(usual(i, _FIRST), self.limits.least, even**2) for i, even in enumerate(evens)]

    def _add_grown(self, z_loss: Signal, found: Found) -> None:
        """Growth that is a warning by itself, however slow it was."""
        if z_loss.high <= min(self.large, default=math.inf):
            return
        for index, (value, large) in enumerate(zip(z_loss.values, self.large, strict=True)):
            first = max(self.limits.least, self.memory.first.usual(index, _FIRST))
            known = found.get(index)
            if value > max(self.limits.grown * first, large) and not (known and known.severity):
                found[index] = Reading(
                    severity=Severity.WARN,
                    value=value / first,
                    limit=self.limits.grown,
                    settled=True,
                    facts={"z": value, "usual": first, "sign": ""},
                )

    def _early_sign(self, view: StepView, index: int, ratio: float) -> str:
        """Beside what it is a divergence in the warm-up; empty if nothing is."""
        limits, young = self.limits, view.step <= self.context.warm_up
        over = math.inf
        if index in self.tracks or (young and self.tracks):  # one layer is rarely alone
            over = limits.warn
        elif young:
            over = limits.critical
        if ratio <= over:
            return ""
        return self._sign(view, index)

    def _sign(self, view: StepView, index: int) -> str:
        """Healthy logits grow in the warm-up, too."""
        c, entropy, norm = view.collapse_index, view.signal("entropy"), view.record.grad_norm
        limits, most = self.context.limits, math.log(self.routers[index].num_experts or 1)
        usual = self.memory.first.usual(len(self.routers), _FIRST)
        if c is not None and c.values[index] < limits.of(CollapseLimits).warn:
            return f"c is {c.values[index]:.2f}"
        if entropy is not None and entropy.values[index] < self.limits.certain * most:
            return f"the token entropy is {entropy.values[index] / most:.1%} of its maximum"
        if norm is not None and norm > limits.of(GradientLimits).ratio * usual > 0:
            return f"the gradient norm is {norm / usual:,.0f} times what it was"
        return ""

    def _refresh(self, z_loss: Signal) -> None:
        memory, reference = self.memory, self.memory.reference or self._first()
        if len(memory.past.rows) < _RECENT + _LEAST:
            return
        columns = zip(*memory.past.rows[:-_RECENT], strict=True)
        for i, (z, past) in enumerate(zip(z_loss.values, columns, strict=True)):
            lasts = z > self.limits.warn * reference[i]
            if not lasts or not (i in memory.settled or i in self.tracks):
                memory.settled.add(i)  # an explosion never becomes the reference
                reference[i] = median(past)
        memory.reference = reference

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        sign, logit, most = worst.facts.get("sign"), number(worst, "logit"), number(worst, "most")
        if worst.reason == Reason.OUT_OF_RANGE:
            return f"a router logit of {logit:.0f} in bf16 (limit {most:.0f})", calm_down(run)
        then = "that of the first lines"
        if sign is None:
            then = f"its median before step {worst.onset:,}"
        numbers = f"({number(worst, 'z'):.3g} against {number(worst, 'usual'):.3g})"
        why = f"the z-loss is {worst.value:,.1f} times {then} {numbers}"
        return f"{why}, and {sign}" if sign else why, calm_down(run, early=bool(sign))
