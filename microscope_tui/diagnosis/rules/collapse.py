"""COLLAPSE: c of the counts summed over a window falls below its limits."""

import msgspec

from microscope_tui import measures
from microscope_tui.diagnosis.balancing import stronger_balance
from microscope_tui.diagnosis.episodes import Episode
from microscope_tui.diagnosis.reading import EXACT, PER_STEP, Fact, Reading, Readings, graded
from microscope_tui.diagnosis.rules.base import Rule, experts_of, number, size_of
from microscope_tui.diagnosis.signals import StepView, value_at
from microscope_tui.diagnosis.windows import SummedCounts, Trail, median, window_steps
from microscope_tui.runlog.records import RunRecord


class Suspect(msgspec.Struct):
    """A router whose load is uneven, looked at closely."""

    summed: SummedCounts | None = None
    calm: int = 0
    low_since: int | None = None
    """Start of a stretch that is low step by step."""
    urgent: list[int] = []
    """The last steps, 1 where c was so low that no warm-up explains it."""


class Memory(msgspec.Struct):
    """The suspects, and what was usual before."""

    suspects: dict[int, Suspect] = {}
    usual: Trail = msgspec.field(default_factory=lambda: Trail(every=2, size=32))


class Collapse(Rule):
    """The summaries find suspects; only their counts are read and summed."""

    name = "COLLAPSE"
    subject = "Router collapse"
    means = (
        "The router sends (nearly) every token to the same k experts: the layer has become a "
        "small dense one, and the loss need not show it."
    )
    formula = "c = (exp(H_load) − k)/(E − k) of the counts summed over ≥ 30 steps, below its limit"

    def set_up(self) -> None:
        self.limits = self.context.limits.COLLAPSE
        self.persist(self.limits.window)

    def start(self) -> None:
        self.memory: Memory = Memory()

    def restart(self, step: int) -> None:
        self.memory.suspects.clear()
        self.memory.usual.forget_from(step)

    def read(self, view: StepView) -> Readings | None:
        signal, memory = view.collapse_index, self.memory
        if signal is None:
            return None
        leave = self.limits.leave
        if signal.known and signal.low > leave and not memory.suspects:
            self._remember(view)
            return {}
        found: dict[int, Reading | None] = {}
        for index, value in enumerate(signal.values):
            suspect = memory.suspects.get(index)
            if value != value:
                found[index] = None
            elif value <= leave or suspect is not None:
                suspect = memory.suspects.setdefault(index, Suspect())
                suspect.calm = 0 if value <= leave else suspect.calm + 1
                if suspect.calm > self.leave:
                    del memory.suspects[index]
                else:
                    found[index] = self._look_closer(view, index, value, suspect)
        if not found:
            self._remember(view)
        return found

    def _remember(self, view: StepView) -> None:
        effective = view.signal("effective_experts")
        if effective is not None:
            self.memory.usual.add(view.step, effective.values)

    def _look_closer(self, view: StepView, index: int, value: float, suspect: Suspect) -> Reading:
        limits, router = self.limits, self.routers[index]
        if value > limits.leave:
            suspect.low_since = None
        elif suspect.low_since is None and value < limits.warn:
            suspect.low_since = view.step
        effective = value_at(view.record.router.effective_experts, index) or 0.0
        facts: dict[str, Fact] = {}
        confidence = EXACT
        counts = view.full_counts(index)
        if counts is None:
            confidence = PER_STEP
        else:
            effective = self._sum(counts, suspect, router.top_k, facts)
            value = measures.collapse_index(effective, router.num_experts, router.top_k) or 0.0
        facts["effective"] = effective
        usual = median(self.memory.usual.column(index))
        if usual == usual:  # the median is not moved by a slide that ends in the collapse
            facts["usual"] = usual
        if view.signal("entropy") is None:
            facts["blind"] = "entropy"
        low_for = view.step - (suspect.low_since or view.step)
        if value > limits.leave and low_for > limits.window:
            suspect.low_since = None  # low step by step and even in the sum: a swing
        # A sum still holds the past: alone it says nothing about this step.
        severity = graded(-value, -limits.warn, -limits.critical) if not suspect.calm else None
        return Reading(
            severity=severity,
            clear=value > limits.leave,
            value=value,
            limit=limits.critical if value < limits.critical else limits.warn,
            certain=self._is_urgent(suspect, value),
            facts=facts,
            confidence=confidence,
            since=suspect.low_since,
        )

    def _sum(
        self, counts: list[int], suspect: Suspect, top_k: int, facts: dict[str, Fact]
    ) -> float:
        limits = self.limits
        if suspect.summed is None:
            expected = sum(counts) / len(counts)
            steps = window_steps(expected, limits.evidence, limits.window, limits.max_window)
            suspect.summed = SummedCounts(steps, [], [])
        suspect.summed.add(counts)
        totals = suspect.summed.totals
        busiest = sorted(range(len(totals)), key=lambda e: -totals[e])[:top_k]
        facts["experts"] = tuple(sorted(busiest))
        facts["share"] = sum(totals[e] for e in busiest) / max(1, sum(totals))
        return measures.effective_experts(totals) or 0.0

    def _is_urgent(self, suspect: Suspect, value: float) -> bool:
        suspect.urgent.append(int(not suspect.calm and value < self.limits.urgent))
        del suspect.urgent[: -self.limits.urgent_steps]
        return sum(suspect.urgent) >= 0.9 * self.limits.urgent_steps

    @staticmethod
    def why(worst: Episode, run: RunRecord) -> str:
        effective, usual = number(worst, "effective"), number(worst, "usual")
        why = f"{effective or 0:.1f} of {size_of(worst)} experts effective"
        if usual is not None and usual > (effective or 0):
            why += f" ({usual:.1f} before)"
        share, top_k = number(worst, "share"), worst.router.top_k if worst.router else 1
        if share is not None:
            noun, verb = ("experts", "take") if top_k > 1 else ("expert", "takes")
            why += f"; {noun} {experts_of(worst)} {verb} {share:.0%} of the load"
        if worst.facts.get("blind"):
            why += ". Counts only: a confident collapse and an undecided one look the same here"
        return f"{why}. The loss need not show it"

    @staticmethod
    def remedy(worst: Episode, run: RunRecord) -> str:
        if run.profile == "eval":
            return (
                "evaluate on other data too, and see whether the router's bias was loaded with its "
                "weights; if it is so everywhere, the model was trained into it"
            )
        return stronger_balance(run, worst)
