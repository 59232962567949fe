"""OVERLOAD: one expert, or one expert-parallel rank, gets far more tokens than usual."""

import math

import msgspec

from microscope_tui.diagnosis.context import NEVER_ENDS, RuleLimits
from microscope_tui.diagnosis.episodes import Episode, Reading, Readings, Severity
from microscope_tui.diagnosis.rules.base import Rule, ids_of, number
from microscope_tui.diagnosis.signals import Signal, StepView, SummedCounts, median
from microscope_tui.runlog import RunRecord


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

    relations = (("1 < rank_ratio", f"{NEVER_ENDS}: the busiest rank has at least the mean"),)


class Memory(msgspec.Struct):
    """MaxVio after the warm-up, and the counts summed over ranks."""

    first: list[list[float]] = []
    reference: list[float] = []
    ranks: dict[int, SummedCounts] = {}
    since: dict[int, int] = {}
    """Router → first step of the window in which its busiest rank was first seen."""
    looks: list[int] = []
    """Steps whose counts are in the sums."""
    wait: int = 0


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
        bounded = _is_bounded(self.context.run)
        self.severity = Severity.WARN if bounded else Severity.INFO
        """Severity of a busy expert."""
        self.ranks = [size if size > 1 and r.num_experts % size == 0 else 0 for r in self.routers]

    def restart(self, step: int) -> None:
        memory = self.memory
        memory.ranks, memory.looks, memory.wait = {}, [], 0
        memory.since = {i: since for i, since in memory.since.items() if since < step}

    def read(self, view: StepView) -> Readings | None:
        loads = view.signal("max_load")
        found: dict[int, Reading | None] = {}
        if any(self.ranks):
            self._fold(view)
            self._judge_ranks(found)
        if loads is not None and self._reference(view, loads):
            least = 1.0 + self.limits.least
            if loads.high > least / 1.3 or not loads.known:
                self._judge_loads(view, loads, found)
        return found if loads is not None or any(self.ranks) else None

    def _judge_ranks(self, found: dict[int, Reading | None]) -> None:
        memory = self.memory
        for index, summed in memory.ranks.items():
            totals, ranks = summed.totals, self.ranks[index]
            if len(summed) < summed.window or not sum(totals):
                continue
            ratio = max(totals) * ranks / sum(totals)
            if ratio <= 1.0 + (self.limits.rank_ratio - 1.0) / 1.3:
                memory.since.pop(index, None)
                continue
            busiest, each = totals.index(max(totals)), self.routers[index].num_experts // ranks
            experts = tuple(range(busiest * each, (busiest + 1) * each))
            found[index] = Reading(
                severity=Severity.WARN if ratio > self.limits.rank_ratio else None,
                value=ratio,
                limit=self.limits.rank_ratio,
                facts={"cause": "rank", "ranks": ranks, "experts": experts},
                since=memory.since.setdefault(index, memory.looks[0]),
            )
        for index in memory.since:
            found.setdefault(index, None)  # no sum since the restart yet

    def _reference(self, view: StepView, loads: Signal) -> bool:
        memory = self.memory
        if not memory.reference and view.step > self.context.warm_up:
            memory.first.append(list(loads.values))
            if len(memory.first) >= self.limits.reference_steps:
                columns = [[r[i] for r in memory.first] for i in range(len(self.routers))]
                memory.reference = [median([v for v in c if v == v]) - 1.0 for c in columns]
                memory.first = []
        return bool(memory.reference)

    def _judge_loads(self, view: StepView, loads: Signal, found: dict[int, Reading | None]) -> None:
        baseline = self.context.baseline
        for index, load in enumerate(loads.values):
            known = baseline.max_violation[index] if baseline is not None else None
            reference = self.memory.reference[index] if known is None else known
            if load != load or reference != reference:
                found.setdefault(index, None)
                continue
            noise = self._noise(view, index)
            if noise is None:  # the reference is as noisy, if it is of this run
                noise = 0.0 if known is None else math.inf
            limit = max(self.limits.ratio * reference, self.limits.least, noise)
            of_rank = found.get(index)
            over = of_rank is not None and of_rank.severity is not None
            if load - 1.0 > limit / 1.3 and not over:
                found[index] = Reading(
                    severity=self.severity if load - 1.0 > limit else None,
                    value=load,
                    limit=1.0 + limit,
                    facts={"usual": 1.0 + reference},
                )

    def _noise(self, view: StepView, index: int) -> float | None:
        """99th percentile of MaxVio of a router that is even but for chance; ``None``: unknown."""
        router, tokens = self.routers[index], view.tokens
        if tokens is None or not router.num_experts or not router.top_k:
            return None
        expected = tokens * router.top_k / router.num_experts
        return 1.6 * math.sqrt(2 * math.log(router.num_experts + 1) / expected) * 2

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
            fresh = SummedCounts(self.limits.rank_window, [], [])
            memory.ranks.setdefault(index, fresh).add(folded)

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        if worst.facts.get("cause") == "rank":
            ids, rank = ids_of(worst, "experts"), "the busiest"
            if ids:
                rank = f"rank {ids[0] // len(ids)} (experts {ids[0]} to {ids[-1]})"
            return (
                f"{rank} of {number(worst, 'ranks'):.0f} expert-parallel ranks has "
                f"{worst.value:.1f} times the work of the mean (limit {worst.limit:.1f})",
                "place busy and idle experts on the same rank; no single expert is the cause",
            )
        return (
            f"the busiest expert has {worst.value:.1f} times its fair share "
            f"({number(worst, 'usual'):.1f} after the warm-up)",
            "watch memory and step time, and check which data this expert attracts"
            if _is_bounded(run)
            else "nothing, while neither a capacity nor expert parallelism is configured: experts "
            "that specialise are uneven",
        )


def _is_bounded(run: RunRecord) -> bool:
    """Whether a busy expert makes others wait, or drops tokens."""
    return bool(run.capacity_factor) or run.expert_parallel_size > 1
