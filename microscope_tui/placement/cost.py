"""What uneven load costs if every rank holds neighbouring experts, as engines place them at first.

In training and prefill all ranks wait for the one with the most tokens, in decode for the one that
reads the most experts; with a capacity tokens are dropped, and no rank waits for more than it
allows. A ratio is taken in every step, and then averaged: ranks wait in every step.
"""

from collections.abc import Container, Sequence
from copy import copy
from functools import lru_cache
from statistics import fmean, mode

import msgspec

from microscope_tui.diagnosis import value_at
from microscope_tui.placement.score import Tally
from microscope_tui.runlog import RouterInfo, StepEntry
from microscope_tui.watch import KEPT, Pin, RunWatch

_DECODE_TOKENS = 64


class CostRequest(msgspec.Struct, frozen=True):
    """Ranks (``None``: as in the header), their nodes, share of a balanced step in the experts."""

    ranks: int | None = None
    nodes: int = 1
    expert_share: float | None = None


OF_HEADER = CostRequest()


class Uneven(msgspec.Struct, frozen=True):
    """Busiest rank ÷ mean rank, and the share of expert time lost to waiting; with a capacity,
    instead of time, the share of the choices that is dropped."""

    ratio: float
    lost_share: float | None
    drop_rate: float | None


class Reads(msgspec.Struct, frozen=True):
    """Of its experts, how many a rank is expected to read in decode of so many tokens: the rank
    that reads most, and the mean."""

    tokens: int
    experts: int
    busiest: float
    mean: float


class LayerCost(Uneven, frozen=True):
    """One layer; pairs are the (token, expert) pairs of a step on the busiest and the mean rank."""

    layer: str
    busiest_rank: int
    """The busiest in most steps."""
    busiest_pairs: float
    mean_pairs: float
    decode: Reads | None


class Cost(msgspec.Struct, frozen=True):
    """The mean over some steps; of counts that are shares the pairs are millionths.

    Without a model no layer has counts of experts that divide by the ranks; in it each layer waits.
    Slowdown and lost throughput are of the whole step, if the share of the experts is known.
    """

    ranks: int
    nodes: int
    regime: str
    counts: str
    first_step: int
    last_step: int
    steps: int
    layers: Sequence[LayerCost | None]
    model: Uneven | None = None
    node_ratio: float | None = None
    slowdown: float | None = None
    lost_throughput: float | None = None


def cost_of(
    watch: RunWatch, at: Pin | None, request: CostRequest, only: Container[int] | None = None
) -> Cost | None:
    """The cost in the last ``KEPT`` steps with counts, or in a pinned one; of layers the ``only``.

    ``None`` for one rank, and without counts.
    """
    with watch.lock:
        run, found = watch.run, [at.with_counts] if at is not None else [*watch.shown.counted]
    steps = [entry for entry in found if entry is not None]
    ranks = request.ranks or (run.expert_parallel_size if run is not None else 1)
    if run is None or ranks < 2 or not steps or steps[-1].routers != len(run.routers):
        return None
    nodes = 1 if ranks % request.nodes else request.nodes
    sizes, capped = tuple(router.num_experts for router in run.routers), bool(run.capacity_factor)
    known = [_loads(entry, sizes, ranks, nodes) for entry in steps]
    model, between = Tally(len(steps)), Tally(len(steps))
    layers: list[LayerCost | None] = [None] * len(sizes)
    for index, router in enumerate(run.routers):
        means, maxima, of_nodes, rank = zip(*(loads[index] for loads in known), strict=True)
        model.add(means, maxima)
        between.add([mean * ranks / nodes for mean in means], of_nodes)
        if any(maxima) and (only is None or index in only):
            own = Tally(len(steps))
            own.add(means, maxima)
            held = [at for at, load in enumerate(maxima) if load]
            worst, mean = (fmean(load for load in loads if load) for loads in (maxima, means))
            rows = [steps[at].counts(index) or () for at in held if run.counts != "top1"]
            base, busiest = _uneven(own, steps, (index,), capped), mode(rank[at] for at in held)
            reads = _reads(rows, router, ranks)
            layers[index] = LayerCost(*base, router.name, busiest, worst, mean, reads)
    span = steps[0].record.step, steps[-1].record.step, len(steps)
    regime, every = "capacity" if capped else "tokens", range(len(sizes))
    cost = Cost(ranks, request.nodes, regime, run.counts, *span, layers)
    if not any(model.maxima):
        return cost
    share = 0.0 if capped else request.expert_share or 0.0
    slow = [1 + share * (1 / even - 1) for even in model.steps() if even and share]
    return msgspec.structs.replace(
        cost,
        model=Uneven(*_uneven(model, steps, every, capped)),
        node_ratio=between.ratio if nodes > 1 else None,
        slowdown=fmean(slow) if slow else None,
        lost_throughput=fmean(1 - 1 / time for time in slow) if slow else None,
    )


@lru_cache(KEPT)  # a redraw computes only new steps
def _loads(
    entry: StepEntry, sizes: tuple[int, ...], ranks: int, nodes: int
) -> list[tuple[float, float, float, int]]:
    """Of every layer the mean and the busiest rank, the busiest node, and which rank; or zeros."""
    rows = copy(entry).matrices().tokens_per_expert  # a copy, since the entry would keep them
    found = [(0.0, 0.0, 0.0, 0)] * len(sizes)
    for index, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        if row and len(row) == size and size % ranks == 0:
            loads = _parts(row, ranks)
            worst, node = max(loads), max(_parts(loads, nodes))
            found[index] = (fmean(loads), worst, node, loads.index(worst))
    return found


def _parts(values: Sequence[float], parts: int) -> Sequence[float]:
    """The sums of equal parts."""
    size = len(values) // parts
    return [sum(values[at : at + size]) for at in range(0, len(values), size)]


def _uneven(
    tally: Tally, steps: Sequence[StepEntry], routers: Sequence[int], capped: bool
) -> tuple[float, float | None, float | None]:
    """The fields of ``Uneven``."""
    if not capped:
        return tally.ratio, 1 - tally.balancedness, None
    rates = [value_at(e.record.router.drop_rate, index) for e in steps for index in routers]
    known = [rate for rate in rates if rate is not None and 0 <= rate <= 1]
    return tally.ratio, None, fmean(known) if known else None


def _reads(rows: Sequence[Sequence[int]], router: RouterInfo, ranks: int) -> Reads | None:
    every = [sum(column) for column in zip(*rows, strict=False)]
    if not router.top_k or len(every) != router.num_experts:
        return None
    each = router.top_k / sum(every)  # a count times this is the share of the tokens, at most 1
    read = [1 - (1 - min(1.0, count * each)) ** _DECODE_TOKENS for count in every]
    loads = _parts(read, ranks)
    return Reads(_DECODE_TOKENS, len(every) // ranks, max(loads), fmean(loads))
