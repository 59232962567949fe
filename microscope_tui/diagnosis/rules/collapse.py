"""COLLAPSE: c of the counts summed over a window falls below its limits."""

import math
from collections.abc import Sequence

import msgspec

from microscope_tui import measures
from microscope_tui.diagnosis.context import AtMost, Below, RuleLimits
from microscope_tui.diagnosis.episodes import (
    EXACT,
    PER_STEP,
    Episode,
    Fact,
    Found,
    Reading,
    Readings,
    Severity,
)
from microscope_tui.diagnosis.rules.base import (
    Rule,
    experts_of,
    ids_of,
    listed,
    number,
    size_of,
    stronger_balance,
)
from microscope_tui.diagnosis.rules.shock import ShockLimits
from microscope_tui.diagnosis.signals import (
    BALANCE,
    FirstValues,
    Signal,
    StepView,
    Suspect,
    value_at,
    watched,
)
from microscope_tui.runlog import RunRecord, plural

_MARGIN = 1.3  # of a limit that has no separate limit for recovery


class CollapseLimits(RuleLimits, frozen=True):
    """Published healthy layers stay at c ≥ 0.42; every publicly collapsed one sits at ≤ 0.04."""

    warn: float = 0.35
    critical: float = 0.15
    leave: float = 0.45
    """Recovery needs a margin, or an episode would flicker at its limit."""
    urgent: float = 0.05
    """c this low for ``urgent_steps`` alarms even in the warm-up."""
    urgent_steps: int = 50
    window: int = 30
    """Steps whose counts are summed: a bias that swings with period 2 looks collapsed in every
    step and is perfectly even in the sum. The 24-step shock of a learning-rate restart passes."""
    evidence: int = 50
    """λ of the summed window below which noise alone lowers c; the window widens up to 200."""
    max_window: int = 200
    even: float = 0.8
    """A layer that was at least this even …"""
    even_steps: int = 50
    """… for this many steps has settled: its fall counts even in the warm-up."""
    relative_fall: float = 0.3
    """A warning in fine-tuning needs c to lose this share of its reference (baseline, …"""
    reference_steps: int = 50
    """… or the median of the lines of this many first steps, at least five)."""

    relations = (
        AtMost("critical", "warn"),
        AtMost("urgent", "warn"),
        AtMost("warn", "leave"),
        Below("leave", 1),
        AtMost("window", "max_window"),
        AtMost("max_window", 1000),
        AtMost("even", 1),
        Below("relative_fall", 1),
    )

    @property
    def persistence(self) -> int:
        return self.window


class Falling(Suspect):
    urgent: list[int] = msgspec.field(default_factory=list)
    """The last steps: 1 where c was too low for a warm-up."""


class Memory(msgspec.Struct):
    first: FirstValues
    """c: the reference of a fine-tuning without a baseline."""
    suspects: dict[int, Falling] = {}
    """Router → its fall, while it lasts or was seen lately."""
    uneven_at: list[int] = []
    """Last step at which each router was not even."""
    seen_at: int = 0
    """The latest line: a sparse log hides the steps in between."""
    settled: set[int] = set()
    """Routers that have been even for long enough."""


class Collapse(Rule[CollapseLimits, Memory]):
    """Finds suspects in the summaries; only their counts are decoded and summed."""

    name = "COLLAPSE"
    subject = "Router collapse"
    means = (
        "The router sends (nearly) every token to the same k experts: the layer acts as a small "
        "dense layer, and the loss may not show it. In fine-tuning, c is compared with --baseline "
        "or the first steps; c below the critical limit is always reported. The busiest expert is "
        "excused where c of the others is 0.45 or more: it acts as a shared expert."
    )
    formula = "c = (exp(H_load) − k)/(E − k) of the counts summed over ≥ 30 steps, below its limit"
    turn = 50
    cause_rank = 20
    judges_one_step = True
    needs = BALANCE
    low_is_bad = True
    family = "starvation"
    wants_balance = True
    announced_by = "GRADSPIKE"
    rolls_back_in = ("pretrain", "finetune")
    tells_usual = True

    def set_up(self) -> None:
        self.watched = max(self.limits.leave, self.limits.even)
        self.shock = self.context.limits.of(ShockLimits).within

    def start(self) -> None:
        first = FirstValues(self.limits.reference_steps)
        self.memory = Memory(first, uneven_at=[0] * len(self.routers))

    def restart(self, step: int) -> None:
        memory = self.memory
        memory.suspects.clear()
        memory.first.forget_from(step)
        # The bias may be lost: a router has to settle again.
        memory.settled = set()
        memory.uneven_at = [step - 1] * len(self.routers)
        memory.seen_at = step - 1

    def read(self, view: StepView) -> Readings | None:
        signal, memory = view.collapse_index, self.memory
        if signal is None:
            return None
        if self.context.relative and view.plain_index is not None:  # whom it excuses may change
            memory.first.add(view.step, view.plain_index.values)
        leave, most = self.limits.leave, self.watched
        low = [i for i, value in enumerate(signal.values) if not value > most]
        self._settle(view.step, signal, low)
        found: Found = {}
        for index in sorted({*low, *memory.suspects}):
            value = signal.values[index]
            if value != value:
                found[index] = None
            elif suspect := watched(memory.suspects, index, value <= leave, self.leave, Falling):
                found[index] = self._look_closer(view, index, value, suspect)
        return found

    def _settle(self, step: int, signal: Signal, low: Sequence[int]) -> None:
        memory, limits = self.memory, self.limits
        before = memory.seen_at
        memory.seen_at = step
        for index in low:
            if not signal.values[index] >= limits.even:
                if before - memory.uneven_at[index] >= limits.even_steps:
                    memory.settled.add(index)
                memory.uneven_at[index] = step

    def _look_closer(self, view: StepView, index: int, value: float, suspect: Falling) -> Reading:
        limits, reference = self.limits, self._reference(index)
        if self._is_clear(value, reference) or self._is_usual(value, reference):
            suspect.since = None
        elif suspect.since is None and self._grade(value, reference)[0] is not None:
            suspect.since = view.step
        effective = value_at(view.record.router.effective_experts, index)
        facts: dict[str, Fact] = {"effective": effective or 0.0}
        enough, confidence = True, PER_STEP
        counts = view.full_counts(index)
        if counts is not None:
            confidence = EXACT
            value, enough = self._sum(counts, suspect, self.routers[index].top_k, facts)
        facts |= self._circumstances(view, index, reference)
        low_for = view.step - (suspect.since or view.step)
        clear = self._is_clear(value, reference)
        if clear and low_for > limits.window:
            suspect.since = None  # low step by step and even in the sum: a swing
        # A sum still contains the past: alone it is not evidence about this step.
        judged = enough and not suspect.calm and self.suffices(view, index, limits.evidence)
        severity, limit = self._grade(value, reference)
        urgent = self._is_urgent(suspect, value, severity)
        if not judged:
            severity = None
        return Reading(
            severity=severity,
            clear=clear,
            value=value,
            limit=limit,
            certain=urgent,
            settled=index in self.memory.settled,
            facts=facts,
            confidence=confidence,
            since=suspect.since,
        )

    def _circumstances(
        self, view: StepView, index: int, reference: float | None
    ) -> dict[str, Fact]:
        facts: dict[str, Fact] = {}
        no_load = view.full_counts(index) is None and view.signal("max_load") is None
        if no_load and self.routers[index].top_k > 1:
            facts["unseen"] = "hot expert"
        if reference is not None:
            facts["reference"] = reference
        if view.signal("entropy") is None:
            facts["blind"] = "entropy"
        if not self.context.one_step:
            facts["shock_steps"] = self.shock
        return facts

    def _reference(self, index: int) -> float | None:
        context = self.context
        known = context.baseline.collapse_index[index] if context.baseline is not None else None
        if known is not None and context.relative:
            return known
        if context.run.profile != "finetune":
            return None  # an evaluation has no time axis to compare with
        first, lines = self.memory.first, self.lines(self.limits.reference_steps)
        # A run that starts out collapsed cannot be its own reference.
        usual = first.usual(index, lines) if len(first.rows) >= lines else 0.0
        return usual if usual >= self.limits.critical else None

    def _grade(self, value: float, reference: float | None) -> tuple[Severity | None, float]:
        limits = self.limits
        fallen = math.inf if reference is None else (1.0 - limits.relative_fall) * reference
        if value < limits.critical:
            return Severity.CRITICAL if value < fallen else Severity.WARN, limits.critical
        limit = min(limits.warn, fallen)
        return Severity.WARN if value < limit else None, limit

    def _is_clear(self, value: float, reference: float | None) -> bool:
        limits = self.limits
        if value > limits.leave or reference is None:
            return value > limits.leave
        back = (1.0 - limits.relative_fall / _MARGIN) * reference
        return value >= back and value > _MARGIN * limits.critical

    def _is_usual(self, value: float, reference: float | None) -> bool:
        if reference is None or self._grade(value, reference)[0] is not None:
            return False
        return value >= (1.0 - self.limits.relative_fall / _MARGIN) * reference

    def _sum(
        self, counts: list[int], suspect: Falling, top_k: int, facts: dict[str, Fact]
    ) -> tuple[float, bool]:
        """c of the summed counts, and whether they are enough for a verdict."""
        limits, least = self.limits, self.lines(self.limits.window)
        totals = suspect.add(counts, limits.evidence, least, limits.max_window).totals
        total = sum(totals)
        evidence = total / len(totals)
        found = measures.balance(totals, top_k)
        whole = measures.effective_experts(totals) if found.without else found.effective
        facts |= {"effective": whole or 0.0, "steps": len(suspect.summed or ()) * self.spacing}
        busiest = sorted(range(len(totals)), key=totals.__getitem__, reverse=True)[:top_k]
        facts["experts"] = tuple(sorted(busiest))
        facts["share"] = sum([totals[e] for e in busiest]) / max(1, total)
        if evidence >= limits.evidence:
            facts["idle"] = tuple([e for e, count in enumerate(totals) if count == 0])
        # Of few lines each must count: thirty lines of any size are enough by themselves.
        enough = self.window >= limits.window or evidence >= limits.evidence
        return found.collapse_index or 0.0, enough

    def _is_urgent(self, suspect: Falling, value: float, severity: Severity | None) -> bool:
        low = value < self.limits.urgent and severity is Severity.CRITICAL
        suspect.urgent.append(int(not suspect.calm and low))
        steps = self.lines(self.limits.urgent_steps)
        del suspect.urgent[:-steps]
        return sum(suspect.urgent) >= 0.9 * steps

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        if run.profile == "eval":
            return _why(worst), (
                "evaluate on other data too, and check that the router's bias was loaded with its "
                "weights; if all data shows it, the collapse comes from training"
            )
        return _why(worst), stronger_balance(run, worst)


def _why(worst: Episode) -> str:
    effective, usual = number(worst, "effective"), number(worst, "usual")
    why = f"{effective:.1f} of {size_of(worst)} experts effective"
    idle = ids_of(worst, "idle")
    if usual > effective:
        why += f" ({usual:.1f} before)"
    if "reference" in worst.facts:
        why += f"; c {worst.value:.2f}, {number(worst, 'reference'):.2f} in the reference"
    if "share" in worst.facts:
        noun, verb = ("experts", "take") if " " in experts_of(worst) else ("expert", "takes")
        why += f"; {noun} {experts_of(worst)} {verb} {number(worst, 'share'):.0%} of the load"
        if (steps := number(worst, "steps")) > 1:
            when = "in the last" if worst.active else "over"
            why += f" {when} {steps:.0f} steps"
    if idle:
        verb = "receives" if len(idle) == 1 else "receive"
        why += f"; {len(idle)} of {size_of(worst)} experts ({listed(idle)}) {verb} nothing"
    if worst.facts.get("unseen"):
        why += (
            ". Without counts or max_load, an expert that every token chooses cannot be "
            "distinguished from a collapse"
        )
    if worst.facts.get("blind"):
        why += ". Counts only: a confident collapse and an undecided one look the same here"
    age = worst.last - worst.onset
    if worst.active and age < number(worst, "shock_steps"):
        so_far = plural(age + 1, "step")
        why += f". It is {so_far} old: a transient shock would look the same so far"
    return why
