"""STARVED: a long tail of experts receives very few tokens."""

import math
from collections.abc import Sequence
from operator import add, truediv

import msgspec

from microscope_tui import measures
from microscope_tui.diagnosis.context import AtMost, RuleLimits, is_one_step
from microscope_tui.diagnosis.episodes import (
    EXACT,
    PER_STEP,
    Episode,
    Facts,
    Found,
    Reading,
    Readings,
    Reason,
    Severity,
    graded,
)
from microscope_tui.diagnosis.rules.base import Rule, number, size_of, stronger_balance
from microscope_tui.diagnosis.signals import (
    FirstValues,
    StepView,
    SummedCounts,
    Suspect,
    median,
    watched,
)
from microscope_tui.runlog import RunRecord


class StarvedLimits(RuleLimits, frozen=True):
    """Healthy models starve 0 % of their experts on web text, up to 19 % on one domain."""

    share: float = 0.10
    over_reference: float = 0.10
    """In fine-tuning or an evaluation only this much more than the reference counts …"""
    enter: float = 0.05
    """… of experts below this share of the mean; an episode ends above a tenth. Without it, one
    of 8 experts that hovers at a tenth was an episode five times in 1,500 steps."""
    window: int = 25
    evidence: int = 50
    persistence: int = 50
    in_turn: float = 0.30
    """Mean share of starved experts, step by step, that is too much even if others starve in turn:
    healthy runs on data in blocks let a quarter of the experts rest …"""
    in_turn_steps: int = 500
    """… for this many steps of a pretraining, in at least twice ``window`` lines."""

    relations = (
        AtMost("window", 200),
        AtMost("share", 1),
        AtMost("over_reference", 1),
        AtMost("enter", 0.1),
    )


class Tail(msgspec.Struct):
    """The starved experts of one router in a long block."""

    since: int
    """First step with some."""
    total: float = 0.0
    """Sum of their shares, without what chance starves."""
    many: int = 0
    """Lines with many of them …"""
    counts: list[int] = []
    """… and the sum of the counts of these lines."""


class Block(msgspec.Struct):
    """A long block, in which other experts may starve in each step."""

    began: int = 0
    """First step of it; 0 before it."""
    lines: int = 0
    """Lines in it."""
    tails: dict[int, Tail] = {}
    """Router → its starved experts."""
    left_out: dict[int, int] = {}
    """Router → lines up to the end of a COLLAPSE or DEAD."""


class InTurn(msgspec.Struct):
    """What the last long block showed of one router."""

    since: int
    """First step with starved experts."""
    seen: int
    """Last step of the first such block."""
    share: float = 0.0
    limit: float = 0.0


class Memory(msgspec.Struct):
    """Of the start, of the routers that are looked at closely, and of long blocks."""

    first: FirstValues
    """Starved share of every router in the first lines."""
    suspects: dict[int, Suspect] = {}
    """Router → its summed counts."""
    block: Block = msgspec.field(default_factory=Block)
    in_turn: dict[int, InTurn] = {}
    """Router → what is too much in the last long block."""


class Starved(Rule[StarvedLimits, Memory]):
    name = "STARVED"
    subject = "Starved experts"
    means = (
        "More than a tenth of the experts get less than a tenth of their fair share. On mixed "
        "data the balancing is too weak; on narrow data that is normal."
    )
    formula = (
        "experts below 0.1 of the mean count in the summed window > 10 % of all, for 50 steps; in "
        "a fine-tuning or an evaluation 10 points above the reference, and only experts below 0.05 "
        "start an episode; in a pretraining also the same 10 % in the sum, or 30 % in turn in the "
        "mean, of 500 steps"
    )
    muted_by = ("COLLAPSE", "DEAD", "OSCILLATION")  # a swing starves in turn
    ends_below = 1 / 1.3
    turn = 155
    cause_rank = 100
    wants_balance = True
    judges_one_step = True
    needs = ("starved_experts",)

    def set_up(self) -> None:
        self.least = 1 if self.context.one_step else self.limits.window
        """Summed lines that are enough."""
        self.sizes = [max(1, r.num_experts) for r in self.routers]

    def start(self) -> None:
        self.memory = Memory(FirstValues(2 * self.limits.window))

    def restart(self, step: int) -> None:
        before = self.memory
        before.first.forget_from(step)  # the state at the start of the run is kept
        in_turn = {index: one for index, one in before.in_turn.items() if one.seen < step}
        self.memory = Memory(before.first, in_turn=in_turn)

    def read(self, view: StepView) -> Readings | None:
        starved, memory = view.signal("starved_experts"), self.memory
        if starved is None:
            return None
        shares = list(map(truediv, starved.values, self.sizes))
        self._ease(view)
        if self.context.relative:
            memory.first.add(view.step, shares)
        elif view.step > self.context.warm_up:
            self._add(view, shares)
        found: Found = {}
        # An expert near a tenth of its share starves in every other step.
        least = self.limits.share / 2
        unsure = {index for index, share in enumerate(shares) if not share <= least}
        for index in sorted(unsure | memory.suspects.keys()):
            share = shares[index]
            if share != share or index in view.sick:
                found[index] = None
            elif suspect := self._suspect(index, share > least):
                found[index] = self._look_closer(view, index, share, suspect)
        return found | self._in_turn(shares)

    def _suspect(self, index: int, bad: bool) -> Suspect | None:
        return watched(self.memory.suspects, index, bad, self.limits.window, Suspect)

    def _ease(self, view: StepView) -> None:
        """What was certain, or is an effect, ends after half as many clear steps."""
        memory = self.memory
        if not (memory.in_turn or view.sick):
            return
        memory.in_turn = {i: one for i, one in memory.in_turn.items() if i in self.tracks}
        for index in self.tracks.keys() & {*view.sick, *memory.in_turn}:
            self.tracks[index].leave = self.window
        for index in view.sick:  # what it starves in these steps is the other's
            memory.suspects.pop(index, None)
            if index in self.tracks:
                self.tracks[index].forget_from(0)

    def _in_turn(self, shares: Sequence[float]) -> Found:
        """Those that starve in this step, too; the others may be over."""
        found: Found = {}
        for index, one in self.memory.in_turn.items():
            if not shares[index] <= self.limits.share / 1.3:
                found[index] = self._of_block(one)
        return found

    def _of_block(self, one: InTurn) -> Reading:
        limits = self.limits
        facts: Facts = {}
        if one.limit == limits.in_turn:
            facts = {"cause": Reason.IN_TURN, "steps": limits.in_turn_steps}
        return Reading(
            severity=Severity.WARN,
            certain=True,  # it has lasted long enough
            value=one.share,
            limit=one.limit,
            facts=facts,
            since=one.since,
        )

    def _add(self, view: StepView, shares: Sequence[float]) -> None:
        block, limits = self.memory.block, self.limits
        block.began = block.began or view.step
        block.lines += 1
        for index, share in enumerate(shares):
            if index in view.sick:
                block.left_out[index] = block.lines
                block.tails.pop(index, None)
            elif share > 0:
                tail = block.tails.setdefault(index, Tail(view.step))
                tail.total += max(0.0, share - self._by_chance(view, index))
                if share > limits.share / 2 and (counts := view.full_counts(index)):
                    tail.many += 1
                    tail.counts = list(map(add, tail.counts or [0] * len(counts), counts))
        if view.step - block.began >= limits.in_turn_steps and block.lines >= 2 * limits.window:
            self._end_block(view.step)

    def _by_chance(self, view: StepView, index: int) -> float:
        """The share of experts that starve in one step of so many tokens."""
        pairs = (view.tokens_of(index) or 0.0) * self.routers[index].top_k
        return math.exp(-pairs / self.sizes[index] / 4)  # overdispersion, as in DEAD

    def _end_block(self, step: int) -> None:
        memory, limits = self.memory, self.limits
        before, block = memory.in_turn, memory.block
        memory.in_turn = {}
        memory.block = Block()
        for index, tail in block.tails.items():
            lines = max(block.lines - block.left_out.get(index, 0), 2 * limits.window)
            share = tail.total / lines
            limit = limits.in_turn
            same = self._share_of_same(index, tail, lines)
            if same > limits.share:
                share = same
                limit = limits.share
            # Not while the same experts starve for long: then the window has the numbers.
            track = self.tracks.get(index)
            if share >= limit and (index in before or not (track and track.severity)):
                one = memory.in_turn[index] = before.get(index, InTurn(tail.since, step))
                one.share = share
                one.limit = limit

    def _share_of_same(self, index: int, tail: Tail, lines: int) -> float:
        """The share that starves in the sum; lines without counts here count as even."""
        summed = tail.counts
        even = (lines - tail.many) * sum(summed) // max(1, tail.many * len(summed))
        summed = [count + even for count in summed]
        return measures.starved_experts(summed) / self.sizes[index]

    def _look_closer(
        self, view: StepView, index: int, share: float, suspect: Suspect
    ) -> Reading | None:
        limits = self.limits
        confidence = PER_STEP
        if not self.suffices(view, index, limits.evidence):
            return None
        counts = view.full_counts(index)
        if counts is not None:
            summed = suspect.add(counts, limits.evidence, limits.window, 200)
            if len(summed) < min(summed.window, self.least):
                return None
            share = measures.starved_experts(summed.totals) / len(summed.totals)
            confidence = EXACT
        elif (tokens := view.tokens) is not None:
            router = self.routers[index]
            if tokens * router.top_k < limits.evidence * router.num_experts:
                return None  # with so few tokens some expert starves in every step
        limit = self._limit(index)
        context = self.context
        facts: Facts = {}
        if context.relative and not (context.one_step and context.baseline is None):
            facts = {"reference": limit - limits.over_reference}
        severity = graded(self._beyond_doubt(index, share, suspect.summed), limit)
        if severity is None:
            suspect.since = None
        elif suspect.since is None:
            suspect.since = max(1, view.step - (len(suspect.summed or (1,)) - 1) * self.spacing)
        return Reading(
            severity=severity,
            clear=share <= limit / 1.3,
            value=share,
            limit=limit,
            facts=facts,
            confidence=confidence,
            since=suspect.since,
        )

    def _beyond_doubt(self, index: int, share: float, summed: SummedCounts | None) -> float:
        """Without experts that are only close to a tenth, where they could mislead."""
        if not self.context.relative:
            return share
        if summed is not None and len(summed) >= min(summed.window, self.least):
            return measures.starved_experts(summed.totals, self.limits.enter) / len(summed.totals)
        return share - 1.0 / self.sizes[index]  # which are close is unknown

    def _limit(self, index: int) -> float:
        if not self.context.relative:
            return self.limits.share
        baseline = self.context.baseline
        known = baseline.starved_share[index] if baseline is not None else None
        if known is None and self.context.one_step:
            known = self.limits.share  # healthy models starve up to 19 % on one domain
        if known is None:
            known = median(self.memory.first.column(index))
        if known != known:
            known = 0.0  # nothing was measured yet
        return known + self.limits.over_reference

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        size, share = size_of(worst), worst.value
        if worst.reason == Reason.IN_TURN:
            return (
                f"{share:.0%} of the experts get less than a tenth of the fair share, step by step "
                f"in the mean over {number(worst, 'steps'):,.0f} steps: they starve in turn",
                "check whether the data comes in blocks of one kind, and mix it; if it is mixed, "
                "the load swings slowly: average it over more steps before each update",
            )
        starved = round(share * size)
        verb = "gets" if starved == 1 else "get"
        why = (
            f"{starved} of {size} experts ({share:.0%}) {verb} less than a tenth of the fair share"
        )
        if "reference" in worst.facts:
            why += f" ({number(worst, 'reference'):.0%} in the reference)"
        if not all(router.top_k for router in run.routers):
            why += "; without top_k a collapse looks the same: use --top-k"
        if is_one_step(run):
            return why, "count mixed data: on narrow data a long tail is normal"
        remedy = "check whether the data became narrower"
        if run.profile == "pretrain":
            remedy = stronger_balance(run, worst)
        return why, f"{remedy}; on narrow data a long tail is normal"
