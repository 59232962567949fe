"""DEAD: the same experts receive no tokens for 100 steps in which they should have."""

from collections.abc import Mapping, Sequence
from operator import add

import msgspec

from microscope_tui.diagnosis.context import WHEN, RuleLimits, is_one_step
from microscope_tui.diagnosis.episodes import Episode, Facts, Found, Reading, Readings, Severity
from microscope_tui.diagnosis.rules.base import (
    BACK,
    Rule,
    experts_of,
    ids_of,
    number,
    size_of,
    stronger_balance,
)
from microscope_tui.diagnosis.signals import StepView, expected, window_steps
from microscope_tui.runlog import RunRecord


class DeadLimits(RuleLimits, frozen=True):
    """Zero assignments where at least 56 were expected, in three disjoint windows.

    Data that comes in blocks of 30 to 40 steps lets a quarter of the experts rest for as long, and
    a shock may last 50 steps: twice as long for a warning, four times for a critical alarm.
    """

    evidence: float = 56.0
    """λ of one window. Tokens of one sequence are correlated (overdispersion about 4): the chance
    of zero tokens by chance is exp(−56 ÷ 4) < 1e-6."""
    min_window: int = 8
    max_window: int = 200
    windows: int = 3
    warn_steps: int = 100
    """Least difference of step numbers between the first window without tokens and the alarm …"""
    critical_steps: int = 200
    """… and for a critical one."""
    critical_share: float = 0.2
    """Share of dead experts that is critical."""

    relations = "min_window <= max_window, warn_steps <= critical_steps, critical_share <= 1"


class Memory(msgspec.Struct):
    steps: int = 0
    first: int = 0
    rows: dict[int, int] = {}
    """Routers with possibly dead experts in the whole window → steps with their counts."""
    totals: dict[int, list[int]] = {}
    alive: set[int] = set()
    dead: dict[int, dict[int, tuple[int, int]]] = {}
    """Router → expert → first step of the windows in a row in which it was dead; their number."""
    started_dead: dict[int, list[int]] = {}
    """Dead in the first window of the run: a fine-tuning starts with experts its data ignores."""
    started: int = 0
    """Last step of that window; 0 before its end."""
    back: dict[int, tuple[int, int]] = {}
    """Router → a dead expert that got tokens again, and the first step of that window."""


class Dead(Rule[DeadLimits, Memory]):
    name = "DEAD"
    subject = "Dead experts"
    means = (
        "Experts receive no tokens for several windows in a row. They take memory and learn "
        "nothing. On narrow data this may be harmless: compare before you act."
    )
    formula = (
        "zero of λ ≥ 56 expected assignments, the same expert, in three windows in a row and for "
        "at least 100 steps; critical from 200 steps on, above 20 % of the experts"
    )
    muted_by = ("COLLAPSE",)
    judges_one_step = True
    turn = 80
    cause_rank = 50
    family = "starvation"
    wants_balance = True
    rolls_back_in = ("pretrain",)  # on narrow data dead experts are normal

    def set_up(self) -> None:
        self.needed = self.window = 1  # how long it lasts is counted in steps, expert by expert
        self.leave = self.limits.windows
        self.sizes = {(r.top_k, max(1, r.num_experts)) for r in self.routers}
        self.needs = ("counts",) if self.context.one_step else ("counts", "tokens", "top_k")

    def restart(self, step: int) -> None:
        before = self.memory
        if not 0 < before.started < step:
            self.start()
            return
        # The state at the start of the run is kept when it resumes.
        self.memory = Memory(started_dead=before.started_dead, started=before.started)
        most = self.limits.windows - 1  # one that comes back here does not come back by itself
        for index, dead in before.dead.items():
            kept = {e: (since, min(n, most)) for e, (since, n) in dead.items() if since < step}
            self.memory.dead[index] = kept

    def read(self, view: StepView) -> Readings | None:
        if self.context.one_step:
            return self._of_moment(view)
        dead, tokens, memory = view.signal("dead_experts"), view.tokens, self.memory
        if dead is None or tokens is None:
            return None
        memory.steps += 1
        memory.first = memory.first or view.step
        if dead.known and dead.high <= 0:
            memory.alive.update(range(len(self.routers)))  # no expert was dead in this step
            memory.rows = {}
            memory.totals = {}
        elif len(memory.alive) < len(self.routers):
            self._add(view, dead.values)
        if memory.steps < self.limits.min_window:
            return None
        expected = min([tokens * top_k / experts for top_k, experts in self.sizes])
        limits = self.limits
        least = window_steps(expected, limits.evidence, limits.min_window, limits.max_window)
        # Where only some lines have counts, the window waits for as many of these.
        if memory.steps < least or max(memory.rows.values(), default=least) < least:
            return None
        return self._end_window(expected, view.step)

    def _of_moment(self, view: StepView) -> Readings:
        found: Found = {}
        for index in range(len(self.routers)):
            counts = view.full_counts(index)
            each = expected(view, index, self.context.run) or 0.0
            if counts is None or each < self.limits.evidence:
                continue
            if dead := self._new(index, [e for e, total in enumerate(counts) if total == 0]):
                facts: Facts = {"experts": tuple(dead), "expected": each}
                found[index] = Reading(Severity.WARN, value=float(len(dead)), facts=facts)
        return found

    def _add(self, view: StepView, dead: Sequence[float]) -> None:
        memory = self.memory
        for index, value in enumerate(dead):
            if index in memory.alive:
                continue
            rows = memory.rows.setdefault(index, 0) if value > 0 else 0
            counts = view.full_counts(index) if value > 0 else None
            totals = memory.totals.get(index)
            if counts is not None:  # the summary has their number, not whether they are the same
                totals = counts if totals is None else list(map(add, totals, counts))
                memory.rows[index] = rows + 1
                memory.totals[index] = totals
            if value == 0 or (totals is not None and 0 not in totals):
                memory.alive.add(index)
                memory.rows.pop(index, None)
                memory.totals.pop(index, None)

    def _end_window(self, expected: float, step: int) -> Readings:
        memory, found = self.memory, Found()
        for index in range(len(self.routers)):
            totals = memory.totals.get(index)
            if index in memory.alive:
                memory.dead.pop(index, None)
                memory.back.pop(index, None)
            elif totals is None or expected * memory.rows[index] < self.limits.evidence:
                found[index] = None
            else:
                found[index] = self._judge(index, step, totals)
        memory.started = memory.started or step
        memory.steps = memory.first = 0
        memory.rows = {}
        memory.totals = {}
        memory.alive = set()
        return found

    def _judge(self, index: int, step: int, totals: list[int]) -> Reading:
        memory, limits = self.memory, self.limits
        before = memory.dead.get(index, {})
        for expert in self._lasting(before, memory.first):
            if totals[expert]:
                memory.back[index] = expert, memory.first
        silent = self._new(index, [e for e, total in enumerate(totals) if total == 0])
        known = {e: before.get(e, (memory.first, 0)) for e in silent}
        dead = memory.dead[index] = {e: (since, n + 1) for e, (since, n) in known.items()}
        # Evidence needs the same experts as before.
        young = {e: dead[e] for e in before if e in dead} if before else dead
        if not young:
            return Reading(None, clear=True)
        old = self._lasting(young, step)
        if not old:
            first, _ = min(young.values())
            return Reading(Severity.WARN, clear=True, held=True, since=first)
        gone = sum(step - since >= limits.critical_steps for since in old.values())
        critical = gone > limits.critical_share * len(totals) and not self.context.relative
        return Reading(
            severity=Severity.CRITICAL if critical else Severity.WARN,
            value=float(len(old)),
            facts={
                "experts": tuple(sorted(old)),
                "since": tuple(since for _, since in sorted(old.items())),
                "steps": step - max(old.values()) + 1,
                "back": memory.back.get(index, ()),
            },
            since=min(old.values()),
        )

    def _lasting(self, dead: Mapping[int, tuple[int, int]], step: int) -> dict[int, int]:
        """Experts that had been dead for long enough at ``step``, and since when."""
        limits = self.limits
        return {
            expert: since
            for expert, (since, windows) in dead.items()
            if windows >= limits.windows and step - since >= limits.warn_steps
        }

    def _new(self, index: int, dead: list[int]) -> list[int]:
        """Without the experts that were dead before the training on this data."""
        context, memory = self.context, self.memory
        if not context.relative:
            return dead
        known = context.baseline.dead[index] if context.baseline is not None else None
        if known is None and not (memory.started or context.one_step):  # nothing is before that
            memory.started_dead[index] = dead
        before = memory.started_dead.get(index, ()) if known is None else known
        return [expert for expert in dead if expert not in before]

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        dead = f"{worst.value:.0f} of {size_of(worst)} experts ({experts_of(worst)}{_since(worst)})"
        keep = "do not remove the experts: other data may need them"
        if is_one_step(run):
            expected = f"{number(worst, 'expected'):,.0f}"
            why = f"{dead} received no tokens {WHEN}, where each could expect {expected}"
            return why, f"count other data too; {keep}"
        steps = number(worst, "steps") or worst.last - worst.onset + 1
        why = f"{dead} received no tokens for at least {steps:,.0f} steps"
        if back := ids_of(worst, "back"):
            why += f"; expert {back[0]} came back by itself at step {back[1]:,}: look at the data"
        if run.profile != "pretrain":
            return why, f"compare with the model before this training; {keep}"
        balance = stronger_balance(run, worst)
        return why, f"{balance}, then either re-initialise their router rows or {BACK}"


def _since(worst: Episode) -> str:
    """When they died, unless all at the onset, and how fast they follow each other."""
    since = sorted(ids_of(worst, "since"))
    if not since or since[0] == since[-1] == worst.onset:
        return ""
    pace = (since[-1] - since[0]) / max(1, len(since) - 1)
    steady = len(set(since)) > max(2, len(since) / 2)
    more = f", one more every {pace:,.0f} steps" if steady else ""
    if not pace:
        return f", since step {since[0]:,}"
    return f", since steps {since[0]:,} to {since[-1]:,}{more}"
