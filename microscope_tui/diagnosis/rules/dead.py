"""DEAD: the same experts receive nothing in three windows in which they should have."""

from collections.abc import Sequence

import msgspec

from microscope_tui.diagnosis.balancing import stronger_balance
from microscope_tui.diagnosis.episodes import Episode
from microscope_tui.diagnosis.reading import Reading, Readings, Severity
from microscope_tui.diagnosis.rules.base import Rule, experts_of, size_of
from microscope_tui.diagnosis.signals import StepView
from microscope_tui.diagnosis.windows import window_steps
from microscope_tui.runlog.records import RunRecord


class Memory(msgspec.Struct):
    """The window that is being filled, and who was dead before it."""

    steps: int = 0
    first: int = 0
    totals: dict[int, list[int]] = {}
    """Of the routers in which somebody may be dead all through the window."""
    alive: set[int] = set()
    unknown: set[int] = set()
    dead: dict[int, dict[int, int]] = {}
    """Router → expert → first step of the windows in which it was dead."""
    started_dead: dict[int, list[int]] = {}
    """Dead in the first window of the run: a fine-tuning starts with experts its data ignores."""
    windows: int = 0


class Dead(Rule):
    """Zero assignments where chance cannot explain them."""

    name = "DEAD"
    subject = "Dead experts"
    means = (
        "Experts receive no token at all, window after window. They are paid for in memory and "
        "learn nothing. On narrow data this may be no loss: compare before you act."
    )
    formula = "zero of λ ≥ 56 expected assignments, the same expert, in three windows in a row"
    muted_by = ("COLLAPSE",)

    def start(self) -> None:
        self.limits = self.context.limits.DEAD
        self.persist(self.limits.windows)
        self.needed = self.leave = self.limits.windows
        self.memory: Memory = Memory()

    def read(self, view: StepView) -> Readings | None:
        dead, tokens, memory = view.signal("dead_experts"), view.tokens, self.memory
        if dead is None or tokens is None:
            return None
        memory.steps += 1
        memory.first = memory.first or view.step
        if dead.known and dead.high <= 0:
            memory.alive.update(range(len(self.routers)))  # nobody was in this step
        elif len(memory.alive) < len(self.routers):
            self._add(view, dead.values)
        expected = min(tokens * r.top_k / max(1, r.num_experts) for r in self.routers)
        limits = self.limits
        if memory.steps < window_steps(
            expected, limits.evidence, limits.min_window, limits.max_window
        ):
            return None
        return self._end_window(expected * memory.steps, view.step)

    def _add(self, view: StepView, dead: Sequence[float]) -> None:
        memory = self.memory
        for index in range(len(self.routers)):
            if index in memory.alive:
                continue
            value = dead[index]
            if value == 0:
                memory.alive.add(index)
                continue
            counts = view.full_counts(index) if value > 0 else None
            if counts is None:
                memory.unknown.add(index)  # how many, but not that they are the same ones
                continue
            before = memory.totals.get(index)
            totals = counts if before is None else _summed(before, counts)
            if 0 in totals:
                memory.totals[index] = totals
            else:
                memory.alive.add(index)
                memory.totals.pop(index, None)

    def _end_window(self, evidence: float, step: int) -> Readings:
        memory, found = self.memory, dict[int, Reading | None]()
        memory.windows += 1
        for index in range(len(self.routers)):
            if index in memory.alive:
                memory.dead.pop(index, None)
            elif index in memory.unknown or evidence < self.limits.evidence:
                found[index] = None
            elif index in memory.totals:
                self._judge(index, memory.totals[index], found)
            else:
                found[index] = None
        memory.steps, memory.first = 0, 0
        memory.totals, memory.alive, memory.unknown = {}, set(), set()
        return found

    def _judge(self, index: int, totals: list[int], found: dict[int, Reading | None]) -> None:
        memory, first = self.memory, self.memory.first
        before = memory.dead.get(index, {})
        dead = {e: before.get(e, first) for e, total in enumerate(totals) if total == 0}
        for expert in self._excused(index, dead):
            del dead[expert]
        memory.dead[index] = dead
        lasting = {e: since for e, since in dead.items() if e in before}
        shown = lasting if before else dead  # other experts than before are no evidence
        if not shown:
            return
        share = len(shown) / max(1, len(totals))
        critical = share > self.limits.critical_share and not self.context.relative
        found[index] = Reading(
            severity=Severity.CRITICAL if critical else Severity.WARN,
            value=float(len(shown)),
            facts={"experts": tuple(sorted(shown)), "share": share},
            since=min(shown.values()),
        )

    def _excused(self, index: int, dead: dict[int, int]) -> list[int]:
        """Experts that were dead before anything was trained on this data."""
        if not self.context.relative:
            return []
        baseline = self.context.baseline
        known = baseline.dead[index] if baseline is not None else None
        if known is None:
            if self.memory.windows <= 1:
                self.memory.started_dead[index] = sorted(dead)
            known = frozenset(self.memory.started_dead.get(index, ()))
        return [expert for expert in dead if expert in known]

    @staticmethod
    def why(worst: Episode, run: RunRecord) -> str:
        return (
            f"{worst.value:.0f} of {size_of(worst)} experts ({experts_of(worst)}) received "
            f"nothing in three windows in a row, up to step {worst.last:,}"
        )

    @staticmethod
    def remedy(worst: Episode, run: RunRecord) -> str:
        if run.profile != "pretrain":
            return (
                "compare with the model before this training; keep the experts: few tokens do "
                "not make them useless"
            )
        return f"{stronger_balance(run)}, or re-initialise their router rows"


def _summed(before: list[int], counts: list[int]) -> list[int]:
    return [total + count for total, count in zip(before, counts, strict=True)]
