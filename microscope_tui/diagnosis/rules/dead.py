"""DEAD: the same experts receive almost no tokens for 100 steps in which they should have."""

import math
from collections.abc import Sequence
from itertools import takewhile
from operator import add

import msgspec
from msgspec.structs import replace

from microscope_tui import measures
from microscope_tui.diagnosis.context import WHEN, AtMost, RuleLimits, is_one_step
from microscope_tui.diagnosis.episodes import (
    Episode,
    Fact,
    Facts,
    Found,
    Reading,
    Readings,
    Severity,
)
from microscope_tui.diagnosis.rules.base import (
    BACK,
    Rule,
    experts_of,
    ids_of,
    listed,
    number,
    ranks_of,
    size_of,
    stronger_balance,
)
from microscope_tui.diagnosis.signals import Signal, StepView, expected, window_steps
from microscope_tui.runlog import RunRecord


class DeadLimits(RuleLimits, frozen=True):
    """So few assignments that chance is below 1e-6, in three disjoint windows.

    Data that comes in blocks of 30 to 40 steps lets a quarter of the experts rest for as long, and
    a shock may last 50 steps: twice as long for a warning, four times for a critical alarm.
    """

    evidence: float = 56.0
    """λ of one window without tokens. Tokens of one sequence are correlated (overdispersion about
    4): the chance of none is exp(−56 ÷ 4) < 1e-6."""
    few: float = 0.001
    """An expert with less of λ is dead: 16 of 64 got a token in 15 steps each, of 2,048 a step …"""
    back: float = 0.01
    """… and one with more than this is alive."""
    stray_steps: int = 66
    """In between its window grows to this: three fit into 200 steps."""
    min_window: int = 8
    max_window: int = 200
    windows: int = 3
    warn_steps: int = 100
    """Least difference of step numbers between the first window without tokens and the alarm …"""
    critical_steps: int = 200
    """… and for a critical one."""
    critical_share: float = 0.2
    """Share of dead experts that is critical."""
    info_share: float = 0.01
    """In a fine-tuning or an evaluation fewer are information: some expert is always rare."""

    relations = (
        AtMost("min_window", "max_window"),
        AtMost("warn_steps", "critical_steps"),
        AtMost("critical_share", 1),
    )


EVEN = 0.9
"""c of the living experts with which balancing did not fail."""
_REST = 32
"""Steps between two looks at starved experts that proved alive."""


class Silent(msgspec.Struct):
    """An expert with almost no tokens."""

    since: int
    """First step of the windows in a row in which it was dead …"""
    first: int
    """… and of the window that grows."""
    share: float
    """What it can expect, of the fair count."""
    died: int
    """First line without tokens, maybe in the block before."""
    windows: int = 0
    """Windows in a row in which it was dead."""
    strays: int = 0
    """Tokens since ``since``."""
    fair: float = 0.0
    """Tokens that it could expect since then; the next two are of the window that grows."""
    tokens: int = 0
    expected: float = 0.0


class Line(msgspec.Struct):
    """A line with starved experts."""

    step: int
    starved: Sequence[float]
    """Their number by router."""


class Tally(msgspec.Struct):
    """The counts of one router in a block, while it may have dead experts."""

    lines: int = 0
    """Lines with its counts."""
    tokens: dict[int, int] = {}
    """Tokens of the experts that may be dead, from the first of these lines on."""


class Block(msgspec.Struct):
    """Lines that are enough for evidence together."""

    first: int = 0
    """First step; 0 before it."""
    steps: int = 0
    """Lines so far."""
    tallies: dict[int, Tally] = {}
    """Routers with possibly dead experts in every line of it."""
    alive: set[int] = set()
    """Routers of which a line shows that no expert is dead."""


class Start(msgspec.Struct):
    """The first block of the run: a fine-tuning starts with experts its data ignores."""

    last: int = 0
    """Last step of it; 0 before its end."""
    dead: dict[int, list[int]] = {}
    """Router → the experts that are dead in it."""


class Memory(msgspec.Struct):
    """Of the start, of what experts had before, of the block that grows, and of dead experts."""

    start: Start = msgspec.field(default_factory=Start)
    past: dict[int, list[int]] = {}
    """Counts of some lines: what an expert can expect."""
    due: int = 0
    """Lines until the next of them."""
    block: Block = msgspec.field(default_factory=Block)
    lines: list[Line] = []
    """The last lines with starved experts, since the block before."""
    rest: dict[int, int] = {}
    """Router → step until which its starved experts are not looked at again."""
    dead: dict[int, dict[int, Silent]] = {}
    """Router → the experts that may be dead."""
    back: dict[int, tuple[int, int]] = {}
    """Router → a dead expert that no longer starves, and the first step of that block."""


class Dead(Rule[DeadLimits, Memory]):
    name = "DEAD"
    subject = "Dead experts"
    means = (
        "Experts receive almost no tokens, window after window. They take memory and learn "
        "nothing. On narrow data this may be harmless: compare before you act."
    )
    formula = (
        "zero of λ ≥ 56 expected assignments, or below λ ÷ 1,000, the same expert, in three "
        "windows in a row and for at least 100 steps; critical from 200 steps on, above 20 % of "
        "the experts, or a rank in all layers; in a fine-tuning or an evaluation λ is what it had "
        "before, and below 1 % of the experts is information"
    )
    muted_by = ("COLLAPSE",)
    judges_one_step = True
    turn = 80
    cause_rank = 50
    family = "starvation"
    wants_balance = True
    decides_in = 200
    rolls_back_in = ("pretrain",)  # on narrow data dead experts are normal

    def set_up(self) -> None:
        self.needed = self.window = 1  # how long it lasts is counted in steps, expert by expert
        self.leave = self.limits.windows
        self.sizes = {(r.top_k, max(1, r.num_experts)) for r in self.routers}
        self.by_own_share = self.context.relative and self.context.baseline is None
        self.needs = ("counts", "tokens", "top_k")
        if self.context.one_step:
            self.needs = ("counts",)

    def restart(self, step: int) -> None:
        before = self.memory
        if not 0 < before.start.last < step:
            self.start()
            return
        # The state at the start of the run is kept when it resumes.
        memory = self.memory = Memory(before.start, before.past)
        most = self.limits.windows - 1  # one that comes back here does not come back by itself
        for index, dead in before.dead.items():
            memory.dead[index] = {
                e: replace(one, first=step, windows=min(one.windows, most), tokens=0, expected=0.0)
                for e, one in dead.items()
                if one.since < step
            }

    def read(self, view: StepView) -> Readings | None:
        if self.context.one_step:
            return self._of_moment(view)
        dead, tokens, memory = view.signal("dead_experts"), view.tokens, self.memory
        if dead is None or tokens is None:
            return None
        starved = view.signal("starved_experts") or dead
        expected = min([tokens * top_k / experts for top_k, experts in self.sizes])
        block = memory.block
        block.steps += 1
        block.first = block.first or view.step
        if starved.known and starved.high <= 0:
            block.alive.update(range(len(self.routers)))  # no expert was dead in this step
            block.tallies = {}
            memory.lines = []
        else:
            memory.lines.append(Line(view.step, list(map(float, starved.values))))
            self._add(view, starved, dead, expected)
        if self.by_own_share:
            self._add_to_past(view, expected)
        # Where only some lines have counts, the block waits for as many of these.
        counted = max([tally.lines for tally in block.tallies.values()], default=block.steps)
        if min(counted, block.steps) < self._block_steps(expected):
            return None
        return self._end_block(expected, view)

    def _block_steps(self, expected: float) -> int:
        limits = self.limits
        return window_steps(expected, limits.evidence, limits.min_window, limits.max_window)

    def _of_moment(self, view: StepView) -> Readings:
        found: Found = {}
        for index in range(len(self.routers)):
            counts = view.full_counts(index)
            each = expected(view, index, self.context.run) or 0.0
            if counts is None or each < self.limits.evidence:
                continue
            if dead := self._new(index, [e for e, total in enumerate(counts) if total == 0]):
                facts: Facts = {"experts": tuple(dead), "expected": each}
                severity = self._graded(len(dead), len(counts))
                found[index] = Reading(severity, value=float(len(dead)), facts=facts)
        return found

    def _add(self, view: StepView, starved: Signal, dead: Signal, expected: float) -> None:
        memory, block = self.memory, self.memory.block
        for index, value in enumerate(starved.values):
            if index in block.alive:
                continue
            stray = dead.values[index] == 0 and not memory.dead.get(index)
            if value > 0 and not (stray and view.step <= memory.rest.get(index, 0)):
                tally = block.tallies.setdefault(index, Tally())
                if self._may_have_dead(view, index, tally, expected):
                    continue
                memory.rest[index] = view.step + _REST
            if value >= 0:
                block.alive.add(index)
                block.tallies.pop(index, None)

    def _may_have_dead(self, view: StepView, index: int, tally: Tally, expected: float) -> bool:
        """After this line; the summary has their number, not whether they are the same."""
        counts, limits = view.full_counts(index), self.limits
        if counts is None:
            return True
        if not tally.lines:
            tally.tokens = dict.fromkeys(self._suspects(index, counts, expected), 0)
        tally.lines += 1
        tally.tokens = {expert: had + counts[expert] for expert, had in tally.tokens.items()}
        if self.memory.dead.get(index):
            return True
        most = limits.few * limits.min_window * expected  # with more an expert is alive here
        return min(tally.tokens.values(), default=math.inf) <= most

    def _suspects(self, index: int, counts: list[int], expected: float) -> set[int]:
        fair = expected * self._block_steps(expected)
        most = 2 * max(1.0, self.limits.back * fair)  # the coming steps may have more tokens
        few = [expert for expert, tokens in enumerate(counts) if tokens < most]
        return {*few, *self.memory.dead.get(index, ())}

    def _add_to_past(self, view: StepView, expected: float) -> None:
        memory, limits = self.memory, self.limits
        memory.due -= 1
        if memory.due > 0:
            return
        for index in range(len(self.routers)):
            if (counts := view.full_counts(index)) is not None:
                known = memory.past.get(index, [0] * len(counts))
                memory.past[index] = list(map(add, known, counts))
                memory.due = 2 * _REST
                if expected * limits.min_window < limits.evidence:
                    memory.due = 4

    def _end_block(self, expected: float, view: StepView) -> Readings:
        memory, found, step = self.memory, Found(), view.step
        block = memory.block
        for index in range(len(self.routers)):
            tally = block.tallies.get(index, Tally())
            fair = expected * tally.lines
            if index in block.alive:
                memory.dead.pop(index, None)
                memory.back.pop(index, None)
            elif not tally.lines or fair < self.limits.evidence:
                found[index] = None
            else:
                found[index] = self._judge(index, view, tally.tokens, fair)
        memory.start.last = memory.start.last or step
        memory.lines = [line for line in memory.lines if line.step >= block.first]
        memory.block = Block()
        return self._with_lost_rank(found, step)

    def _judge(self, index: int, view: StepView, totals: dict[int, int], fair: float) -> Reading:
        before, step = self.memory.dead.get(index, {}), view.step
        evident = [e for e, one in before.items() if one.windows]
        now = self.memory.dead[index] = self._follow(index, step, totals, fair)
        # Evidence needs the same experts as before.
        young = {e: now[e] for e in evident or now if e in now and now[e].windows}
        if not young:
            return Reading(None, clear=True)
        if old := {e: one for e, one in young.items() if self._lasts(one, step)}:
            return self._of_old(index, view, old)
        first = min(one.since for one in young.values())
        severity = self._graded(len(young), self._experts(index))
        return Reading(severity, clear=True, held=True, since=first)

    def _follow(
        self, index: int, step: int, totals: dict[int, int], fair: float
    ) -> dict[int, Silent]:
        """The experts that may be dead after a block of ``fair`` expected tokens."""
        memory, now = self.memory, dict[int, Silent]()
        first = memory.block.first
        before = memory.dead.get(index, {})
        most = max(1.0, self.limits.back * fair)
        few = [e for e, n in totals.items() if n < most]
        lines = takewhile(lambda line: line.starved[index] >= len(few), reversed(memory.lines))
        died = min([first, *(line.step for line in lines)])
        for expert in self._new(index, sorted({*few, *before})):
            one, tokens = before.get(expert), totals[expert]
            if one is None or (one.tokens and not one.windows and not tokens):
                one = Silent(first, first, self._share(index, expert), died)
            one.tokens += tokens
            one.strays += tokens
            one.fair += fair * one.share
            one.expected += fair * one.share
            if self._may_be_dead(one, step):
                now[expert] = one
            elif tokens > 1 + one.share * fair / 10 and self._lasts(one, first):
                memory.back[index] = expert, first
        return now

    def _of_old(self, index: int, view: StepView, old: dict[int, Silent]) -> Reading:
        memory, limits, experts = self.memory, self.limits, self._experts(index)
        step = view.step
        since = tuple(one.died for one in old.values())
        strays = sum(one.strays for one in old.values())
        silent_since = max(since)
        if strays:
            silent_since = min(since)  # the sentence gives their tokens since the first died
        gone = sum(step - at >= limits.critical_steps for at in since)
        critical = gone > limits.critical_share * experts and not self.context.relative
        facts: dict[str, Fact] = {
            "experts": tuple(old),
            "since": since,
            "steps": step - silent_since + 1,
            "strays": strays,
            "expected": sum(one.fair for one in old.values()),
            "back": memory.back.get(index, ()),
            "ranks": ranks_of(tuple(old), experts, self.context.run),
        }
        if max(since) <= memory.start.last and (effective := view.signal("effective_experts")):
            living, top_k = experts - len(old), self.routers[index].top_k
            facts["rest"] = measures.collapse_index(effective.values[index], living, top_k) or 0.0
        severity = self._graded(len(old), experts)
        if critical:
            severity = Severity.CRITICAL
        return Reading(
            severity=severity,
            value=float(len(old)),
            facts=facts,
            since=min(since),
        )

    def _experts(self, index: int) -> int:
        return self.routers[index].num_experts

    def _may_be_dead(self, one: Silent, step: int) -> bool:
        """End its window, unless that grows."""
        limits = self.limits
        if one.tokens >= max(1.0, limits.back * one.expected):
            return False
        is_dead = one.tokens < max(1.0, limits.few * one.expected)
        if is_dead and one.expected < limits.evidence:
            return True
        if not is_dead and step - one.first < limits.stray_steps - limits.min_window:
            return True
        one.windows += is_dead
        one.first = step + 1
        one.tokens = 0
        one.expected = 0.0
        return is_dead or self._lasts(one, step)

    def _lasts(self, one: Silent, step: int) -> bool:
        limits = self.limits
        return one.windows >= limits.windows and step - one.since >= limits.warn_steps

    def _share(self, index: int, expert: int) -> float:
        """What it can expect, of the fair count: the lower 95 % bound of its own share so far."""
        if not self.by_own_share:
            return 1.0
        past = self.memory.past.get(index, [])
        had = past[expert] if past else 0
        least = max(0.0, had - 1.645 * math.sqrt(4 * had))  # overdispersion, as above
        return min(1.0, least * len(past) / max(1, sum(past)))

    def _graded(self, dead: int, experts: int) -> Severity:
        if self.by_own_share and dead < self.limits.info_share * experts:
            return Severity.INFO
        return Severity.WARN

    def _with_lost_rank(self, found: Found, step: int) -> Found:
        """The same ranks in all layers are critical, in any profile."""
        latest = step - self.limits.critical_steps
        dead = {i: one for i, one in found.items() if one and (one.since or step) <= latest}
        ranks = {one.facts.get("ranks", ()) for one in dead.values()}
        if len(dead) == len(self.routers) > len(ranks) == 1 and () not in ranks:
            return {i: replace(one, severity=Severity.CRITICAL) for i, one in dead.items()}
        return found

    def _new(self, index: int, dead: list[int]) -> list[int]:
        """Without those that were dead before the training on this data."""
        context, memory = self.context, self.memory
        if not context.relative:
            return dead
        known = context.baseline.dead[index] if context.baseline is not None else None
        start = memory.start
        if known is None:
            if not (start.last or context.one_step):  # nothing is before that
                start.dead[index] = dead
            known = frozenset(start.dead.get(index, ()))
        return [expert for expert in dead if expert not in known]

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        dead = f"{worst.value:.0f} of {size_of(worst)} experts ({_which(worst)}{_since(worst)})"
        keep = "do not remove the experts: other data may need them"
        if is_one_step(run):
            expected = f"{number(worst, 'expected'):,.0f}"
            why = f"{dead} received no tokens {WHEN}, where each could expect {expected}"
            return why, f"count other data too; {keep}"
        steps = number(worst, "steps") or worst.last - worst.onset + 1
        strays = number(worst, "strays")
        few = "no tokens for at least"
        if strays:
            few = f"only {strays:,.0f} of {number(worst, 'expected'):,.0f} expected tokens in"
        why = f"{dead} received {few} {steps:,.0f} steps"
        if back := ids_of(worst, "back"):
            why += f"; expert {back[0]} came back by itself at step {back[1]:,}: look at the data"
        if run.profile != "pretrain":
            return why, f"compare with the model before this training; {keep}"
        if few_from_start(worst):
            return why, (
                f"re-initialise only their router rows: the other experts are even "
                f"(c {number(worst, 'rest'):.2f}), no setting is to blame"
            )
        balance = stronger_balance(run, worst)
        return why, f"{balance}, then either re-initialise their router rows or {BACK}"


def few_from_start(episode: Episode) -> bool:
    """Whether a few experts never received tokens, beside even ones."""
    few = episode.value <= DeadLimits().critical_share * size_of(episode)
    return few and number(episode, "rest") >= EVEN


def _which(worst: Episode) -> str:
    """``3, 17 and 4 more``, or of neighbours ``160–191, rank 5``."""
    experts, ranks = ids_of(worst, "experts"), ids_of(worst, "ranks")
    shown = experts_of(worst)
    if len(experts) > 3 and experts[-1] - experts[0] < len(experts):
        shown = f"{experts[0]}–{experts[-1]}"
    return f"{shown}, rank {listed(ranks)}" if ranks else shown


def _since(worst: Episode) -> str:
    since = sorted(ids_of(worst, "since"))
    if not since or since[0] == since[-1] == worst.onset:
        return ""
    pace = (since[-1] - since[0]) / max(1, len(since) - 1)
    if not pace:
        return f", since step {since[0]:,}"
    when = f", since steps {since[0]:,} to {since[-1]:,}"
    if len(set(since)) > max(2, len(since) / 2):
        when += f", one more every {pace:,.0f} steps"
    return when
