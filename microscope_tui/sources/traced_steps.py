"""Steps of a router trace summed over ranks, with layers numbered through all pipeline stages."""

from array import array
from collections.abc import Collection
from dataclasses import dataclass, field

from microscope_tui.sources.exact_counts import Counted, Router
from microscope_tui.sources.reader import Unreadable
from microscope_tui.sources.router_trace import RankStep, add_counts


@dataclass(slots=True)
class StepSum:
    """One step over the ranks that have finished it."""

    counts: "dict[tuple[int, Router], array[int]]" = field(default_factory=dict)
    """By stage and router."""
    tokens: dict[tuple[int, Router], int] = field(default_factory=dict)
    routers: dict[int, frozenset[Router]] = field(default_factory=dict)
    """By rank."""
    seen: set[int] = field(default_factory=set)
    top_k: int = 0
    summed: int = 0
    """Ranks with tokens of their own."""

    def add(self, rank: int, stage: int, part: RankStep) -> None:
        """Add what one rank traced, unless another one traced the same tokens."""
        self.routers[rank] = frozenset(part.counts)
        what = hash(frozenset(part.calls))
        if what in self.seen:
            return
        self.seen.add(what)
        self.summed += 1
        self.top_k = self.top_k or part.top_k
        for router, counts in part.counts.items():
            key = (stage, router)
            add_counts(self.counts.setdefault(key, array("q")), counts)
            self.tokens[key] = self.tokens.get(key, 0) + part.tokens[router]


class Stages:
    """The pipeline stages of a run, and where the layers of each begin."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._layers: list[tuple[int, int]] = []  # by stage: its first layer, and how many

    def of(self, rank: int, ranks: Collection[int]) -> int:
        """The stage of one of all ranks.

        Raises:
            Unreadable: the ranks do not fit the number of stages.
        """
        if self._number == 1:
            return 0
        number = len(ranks)
        if sorted(ranks) != list(range(number)) or number % self._number:
            raise Unreadable(
                f"{number} ranks do not make {self._number} pipeline stages; all ranks from 0 on "
                "must be there, and --pipeline-parallel must divide their number"
            )
        return rank // (number // self._number)

    def disagreement(self, step: int, summed: StepSum, ranks: Collection[int]) -> str:
        """In words, if ranks of one stage traced different layers; else empty."""
        first: dict[int, tuple[int, frozenset[Router]]] = {}
        for rank, routers in sorted(summed.routers.items()):
            other, expected = first.setdefault(self.of(rank, ranks), (rank, routers))
            if routers != expected:
                return (
                    f"ranks {other} and {rank} trace different layers in step {step} "
                    f"({_shown(expected)}; {_shown(routers)}): layers are numbered within a "
                    f"pipeline stage; give --pipeline-parallel N (now {self._number})"
                )
        return ""

    def counted(self, step: int, summed: StepSum) -> Counted:
        """The step with the layers numbered through all stages.

        Raises:
            Unreadable: a stage has more layers than in the first step.
        """
        if not self._layers:
            start = 0
            for stage in range(self._number):
                layers = [r.layer for s, r in summed.counts if s == stage and not r.mtp]
                self._layers.append((start, max(layers, default=-1) + 1))
                start += self._layers[-1][1]
        rows: dict[Router, list[int]] = {}
        tokens: dict[Router, int] = {}
        for (stage, router), counts in summed.counts.items():
            first, number = self._layers[stage]
            if not router.mtp and router.layer >= number and self._number > 1:
                raise Unreadable(
                    f"layer {router.layer} of pipeline stage {stage} appears only in step {step}: "
                    "the numbers of the layers after it are not known"
                )
            place = router if router.mtp else Router(0, first + router.layer)
            rows[place] = list(counts)
            tokens[place] = summed.tokens[stage, router]
        return Counted(step + 1, rows, tokens, summed.top_k or None)


def _shown(routers: frozenset[Router]) -> str:
    """A few names of routers."""
    names = [router.name() for router in sorted(routers)]
    return ", ".join(names if len(names) < 6 else [*names[:2], "…", *names[-2:]]) or "none"
