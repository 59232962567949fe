"""OVERLOAD: one expert, or one expert-parallel rank, gets far more tokens than usual."""

import math

import msgspec

from microscope_tui.diagnosis.context import Below, RuleLimits
from microscope_tui.diagnosis.episodes import (
    Episode,
    Found,
    Reading,
    Readings,
    Reason,
    Severity,
    graded,
)
from microscope_tui.diagnosis.rules.base import Rule, ids_of, number
from microscope_tui.diagnosis.signals import FirstValues, Signal, StepView, SummedCounts
from microscope_tui.runlog import RunRecord

_ATTRACTS = "check which data this expert attracts"


class OverloadLimits(RuleLimits, frozen=True):
    """A MaxVio of 2 and more is normal for healthy models: only a change within the run counts.

    Fine-grained models specialise to a MaxVio of 2 to 11 (Moonlight runs at 4 to 9), so it is a
    warning only with a capacity or expert parallelism.
    """

    ratio: float = 3.0
    """MaxVio relative to the median of the reference window."""
    least: float = 2.5
    """Experts that specialise from an equal start reach a MaxVio of 2, as in healthy models."""
    reference_steps: int = 100
    rank_ratio: float = 1.5
    """Assignments of the busiest expert-parallel rank relative to the mean rank."""
    rank_every: int = 4
    rank_window: int = 8
    """Counts of every fourth step are summed over eight of them."""
    persistence: int = 25

    relations = (Below(1, "rank_ratio"),)


class Memory(msgspec.Struct):
    first: FirstValues
    ranks: dict[int, SummedCounts] = {}
    """Router → counts of its ranks in the last looks."""
    since: dict[int, int] = {}
    """Router → first step of the window in which its busiest rank was first seen."""
    looks: list[int] = []
    """Steps whose counts are in the sums."""
    wait: int = 0
    """Lines until the next look at the ranks."""


class Overload(Rule[OverloadLimits, Memory]):
    """Costs speed and memory where a capacity or ranks make experts wait for each other."""

    name = "OVERLOAD"
    subject = "Overload"
    means = (
        "The busiest expert, or the busiest expert-parallel rank, gets far more tokens than the "
        "mean. With a capacity they are dropped, with expert parallelism the step waits for them; "
        "otherwise this is information: specialised experts reach 4 to 9 times the mean."
    )
    formula = (
        "MaxVio above 3 × the median of the first steps after the warm-up (and above its noise), "
        "or the busiest rank above 1.5 × the mean rank, for 25 steps; a warning only with a "
        "capacity_factor or an expert_parallel_size above 1"
    )
    muted_by = ("COLLAPSE",)
    turn = 110
    cause_rank = 110
    needs = ("max_load",)

    def set_up(self) -> None:
        size = self.context.run.expert_parallel_size
        self.ranks = [0] * len(self.routers)
        for index, router in enumerate(self.routers):
            if size > 1 and router.num_experts % size == 0:
                self.ranks[index] = size

    def start(self) -> None:
        self.memory = Memory(FirstValues(self.limits.reference_steps))

    def restart(self, step: int) -> None:
        memory = self.memory
        memory.ranks = {}
        memory.looks = []
        memory.wait = 0
        memory.since = {i: since for i, since in memory.since.items() if since < step}

    def read(self, view: StepView) -> Readings | None:
        loads = view.signal("max_load")
        found: Found = {}
        if any(self.ranks):
            self._fold(view)
            self._judge_ranks(found)
        if loads is not None and view.step > self.context.warm_up:
            self.memory.first.add(view.step, loads.values)
            high = loads.high > 1.0 + self.limits.least / 1.3 or not loads.known
            if high and self.memory.first.medians:
                self._judge_loads(view, loads, found)
        return found if loads is not None or any(self.ranks) else None

    def _judge_ranks(self, found: Found) -> None:
        memory = self.memory
        for index, summed in memory.ranks.items():
            totals, ranks = summed.totals, self.ranks[index]
            if len(summed) < summed.window or not sum(totals):
                continue
            ratio = max(totals) * ranks / sum(totals)
            if ratio <= 1.0 + (self.limits.rank_ratio - 1.0) / 1.3:
                memory.since.pop(index, None)
                continue
            busiest = totals.index(max(totals))
            each = self.routers[index].num_experts // ranks
            experts = tuple(range(busiest * each, (busiest + 1) * each))
            found[index] = Reading(
                severity=graded(ratio, self.limits.rank_ratio),
                value=ratio,
                limit=self.limits.rank_ratio,
                facts={"cause": Reason.OF_RANK, "ranks": ranks, "experts": experts},
                since=memory.since.setdefault(index, memory.looks[0]),
            )
        for index in memory.since:
            found.setdefault(index, None)  # no sum since the restart yet

    def _judge_loads(self, view: StepView, loads: Signal, found: Found) -> None:
        baseline = self.context.baseline
        severity = Severity.WARN if _is_bounded(self.context.run) else Severity.INFO
        first, near = self.memory.first.medians, list(range(len(self.routers)))
        if baseline is None and sum(first) == sum(first):  # else some of them are unknown
            least = 1.0 + self.limits.least / 1.31  # below every limit
            near = [i for i, load in enumerate(loads.values) if not load < least]
        for index in near:
            load = loads.values[index]
            known = baseline.max_violation[index] if baseline is not None else None
            reference = first[index] - 1.0
            unknown = 0.0  # the reference is as noisy, if it is of this run
            if known is not None:
                reference = known
                unknown = math.inf
            if load != load or reference != reference:
                found.setdefault(index, None)
                continue
            noise = self._noise(index, view.tokens, unknown)
            limit = max(self.limits.ratio * reference, self.limits.least, noise)
            of_rank = found.get(index)
            over = of_rank is not None and of_rank.severity is not None
            if load - 1.0 > limit / 1.3 and not over:
                found[index] = Reading(
                    severity=severity if load - 1.0 > limit else None,
                    value=load,
                    limit=1.0 + limit,
                    facts={"usual": 1.0 + reference},
                )

    def _noise(self, index: int, tokens: float | None, unknown: float) -> float:
        """The 99th percentile of the MaxVio of an even router."""
        router = self.routers[index]
        choices, experts = (tokens or 0.0) * router.top_k, router.num_experts
        if not choices:
            return unknown
        return 3.2 * math.sqrt(2 * math.log(experts + 1) * experts / choices)

    def _fold(self, view: StepView) -> None:
        memory = self.memory
        memory.wait -= 1
        if memory.wait > 0 or not view.has_counts:
            return  # a due check waits for a step with counts
        memory.wait = self.limits.rank_every
        memory.looks.append(view.step)
        del memory.looks[: -self.limits.rank_window]
        for index, size in enumerate(self.ranks):
            counts = view.full_counts(index) if size else None
            if counts is None:
                memory.ranks.pop(index, None)
                continue
            width = len(counts) // size
            folded = [sum(counts[at : at + width]) for at in range(0, len(counts), width)]
            memory.ranks.setdefault(index, SummedCounts(self.limits.rank_window)).add(folded)

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        if worst.reason == Reason.OF_RANK:
            ids = ids_of(worst, "experts")
            held, remedy = f"expert {ids[0]}", _ATTRACTS
            if ids[1:]:
                held = f"experts {ids[0]} to {ids[-1]}"
                remedy = (
                    "place busy and idle experts on the same rank; no single expert is the cause"
                )
            rank = f"rank {ids[0] // len(ids)} ({held})"
            return (
                f"{rank} of {number(worst, 'ranks'):.0f} expert-parallel ranks has "
                f"{worst.value:.1f} times the work of the mean (limit {worst.limit:.1f})",
                remedy,
            )
        remedy = (
            "nothing, while neither a capacity nor expert parallelism is configured: experts that "
            "specialise are uneven"
        )
        if _is_bounded(run):
            remedy = f"watch memory and step time, and {_ATTRACTS}"
        return (
            f"the busiest expert has {worst.value:.1f} times its fair share "
            f"({number(worst, 'usual'):.1f} after the warm-up)",
            remedy,
        )


def _is_bounded(run: RunRecord) -> bool:
    return bool(run.capacity_factor) or run.expert_parallel_size > 1
