"""STARVED: a long tail of experts receives very few tokens."""

import math
from operator import add, truediv

import msgspec

from microscope_tui import measures
from microscope_tui.diagnosis.context import Relation, RuleLimits, is_one_step
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
)
from microscope_tui.diagnosis.rules.base import Rule, number, size_of, stronger_balance
from microscope_tui.diagnosis.signals import (
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
        Relation("window", "<=", 200),
        Relation("share", "<=", 1),
        Relation("over_reference", "<=", 1),
        Relation("enter", "<=", 0.1),
    )


class Memory(msgspec.Struct):
    """The suspects, the usual values at the start, and the starved experts of a long block."""

    suspects: dict[int, Suspect] = {}
    """Router → its summed counts."""
    first: list[list[float]] = []
    """Starved share of every router in the first lines …"""
    first_steps: list[int] = []
    """… and their steps."""
    in_turn: dict[int, tuple[float, float, int, int]] = {}
    """Router → its share in the last long block, the limit, since when, and when this was seen."""
    sums: dict[int, tuple[float, int, int, list[int]]] = {}
    """Router → the sum of its shares in this block, the first step with starved experts, and the
    number of steps with many, and their counts."""
    left_out: dict[int, int] = {}
    """Router → lines of this block up to the end of a COLLAPSE or DEAD."""
    began: int = 0
    """First step of the long block; 0 before it."""
    lines: int = 0
    """Lines in it."""


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

    def restart(self, step: int) -> None:
        # The state at the start of the run is kept when it resumes.
        before = self.memory
        kept = sum(at < step for at in before.first_steps)
        self.memory = Memory(first=before.first[:kept], first_steps=before.first_steps[:kept])
        self.memory.in_turn = {i: one for i, one in before.in_turn.items() if one[3] < step}

    def read(self, view: StepView) -> Readings | None:
        starved, memory = view.signal("starved_experts"), self.memory
        if starved is None:
            return None
        limits = self.limits
        none = starved.known and starved.high <= 0.0
        calm = none and not memory.suspects and not self.context.relative
        shares = [] if calm else list(map(truediv, starved.values, self.sizes))
        self._ease(view)
        self._add(view, shares)
        quiet = starved.known and not memory.suspects and not memory.in_turn
        if quiet and max(shares, default=0.0) <= limits.share / 2:
            return {}
        found: Found = {}
        high = [i for i, share in enumerate(shares) if not share <= limits.share / 2]
        for index in sorted({*high, *memory.suspects}):
            share = shares[index]
            # An expert near a tenth of its share starves in every other step.
            high = share > limits.share / 2
            if share != share or index in view.sick:
                found[index] = None
            elif suspect := watched(memory.suspects, index, high, limits.window, Suspect):
                found[index] = self._look_closer(view, index, share, suspect)
        return found | self._in_turn(shares)

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

    def _in_turn(self, shares: list[float]) -> Found:
        """Those that starve in this step, too; the others may be over."""
        limits = self.limits
        in_turn: Facts = {"cause": Reason.IN_TURN, "steps": limits.in_turn_steps}
        return {
            index: Reading(
                severity=Severity.WARN,
                certain=True,  # it has lasted long enough
                value=share,
                limit=limit,
                facts=in_turn if limit == limits.in_turn else {},
                since=since,
            )
            for index, (share, limit, since, _) in self.memory.in_turn.items()
            if shares and not shares[index] <= limits.share / 1.3
        }

    def _add(self, view: StepView, shares: list[float]) -> None:
        memory, limits = self.memory, self.limits
        if self.context.relative and len(memory.first) < 2 * limits.window:
            memory.first.append(shares)
            memory.first_steps.append(view.step)
        if self.context.relative or view.step <= self.context.warm_up:
            return
        memory.began = memory.began or view.step
        memory.lines += 1
        for index, share in enumerate(shares):
            if index in view.sick:
                memory.left_out[index] = memory.lines
                memory.sums.pop(index, None)
            elif share > 0:
                pairs = (view.tokens_of(index) or 0.0) * self.routers[index].top_k
                pairs /= self.sizes[index]
                by_chance = math.exp(-pairs / 4)  # overdispersion, as in DEAD
                total, first, many, sums = memory.sums.get(index, (0.0, view.step, 0, []))
                total += max(0.0, share - by_chance)
                if share > limits.share / 2 and (counts := view.full_counts(index)):
                    many, sums = many + 1, list(map(add, sums or [0] * len(counts), counts))
                memory.sums[index] = total, first, many, sums
        if view.step - memory.began >= limits.in_turn_steps and memory.lines >= 2 * limits.window:
            self._end_block(view)

    def _end_block(self, view: StepView) -> None:
        memory, limits = self.memory, self.limits
        before = memory.in_turn
        memory.in_turn = {}
        for index, (total, first, many, sums) in memory.sums.items():
            lines = max(memory.lines - memory.left_out.get(index, 0), 2 * limits.window)
            track, share, limit = self.tracks.get(index), total / lines, limits.in_turn
            even = (lines - many) * sum(sums) // max(1, many * len(sums))  # in the other lines
            sums = [count + even for count in sums]
            same = measures.starved_experts(sums) / self.sizes[index]
            if same > limits.share:
                share, limit = same, limits.share
            # Not while the same experts starve for long: then the window has the numbers.
            if share >= limit and (index in before or not (track and track.severity)):
                known = before.get(index, (share, limit, first, view.step))
                memory.in_turn[index] = share, limit, *known[2:]
        memory.sums = {}
        memory.left_out = {}
        memory.began = memory.lines = 0

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
        compared = context.relative and not (context.one_step and context.baseline is None)
        over = self._beyond_doubt(index, share, suspect.summed) > limit
        if not over:
            suspect.since = None
        elif suspect.since is None:
            suspect.since = max(1, view.step - (len(suspect.summed or (1,)) - 1) * self.spacing)
        return Reading(
            severity=Severity.WARN if over else None,
            clear=share <= limit / 1.3,
            value=share,
            limit=limit,
            facts={"reference": limit - limits.over_reference} if compared else {},
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
            known = median([row[index] for row in self.memory.first])
        return (known if known == known else 0.0) + self.limits.over_reference

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
        why = (
            f"{starved} of {size} experts ({share:.0%}) {'gets' if starved == 1 else 'get'} less "
            "than a tenth of the fair share"
        )
        if "reference" in worst.facts:
            why += f" ({number(worst, 'reference'):.0%} in the reference)"
        if not all(router.top_k for router in run.routers):
            why += "; without top_k a collapse looks the same: use --top-k"
        if is_one_step(run):
            return why, "count mixed data: on narrow data a long tail is normal"
        narrower = "check whether the data became narrower"
        remedy = stronger_balance(run, worst) if run.profile == "pretrain" else narrower
        return why, f"{remedy}; on narrow data a long tail is normal"
