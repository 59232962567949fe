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
from msgspec.structs import replace

from microscope_tui.diagnosis import value_at
from microscope_tui.runlog import RouterInfo, RunRecord, StepEntry
from microscope_tui.watch.past_steps import Pin
from microscope_tui.watch.run_watch import RunWatch
from microscope_tui.watch.scan import KEPT
from microscope_tui.watch.score import Tally

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
    run, steps = _counted(watch, at)
    if run is None or not steps or steps[-1].routers != len(run.routers):
        return None
    ranks = request.ranks or run.expert_parallel_size
    if ranks < 2:
        return None
    nodes = request.nodes
    if ranks % nodes:
        nodes = 1
    sizes = tuple(router.num_experts for router in run.routers)
    by_step = [_loads(entry, sizes, ranks, nodes) for entry in steps]
    by_layer = [_Loads(*zip(*loads, strict=True)) for loads in zip(*by_step, strict=True)]
    layers: list[LayerCost | None] = [None] * len(by_layer)
    for index, loads in enumerate(by_layer):
        if only is None or index in only:
            layers[index] = _layer(run, index, loads, steps, ranks)
    regime = "tokens"
    if run.capacity_factor:
        regime = "capacity"
    cost = Cost(
        ranks=ranks,
        nodes=request.nodes,
        regime=regime,
        counts=run.counts,
        first_step=steps[0].record.step,
        last_step=steps[-1].record.step,
        steps=len(steps),
        layers=layers,
    )
    return _with_model(cost, by_layer, steps, nodes, request.expert_share)


def _counted(watch: RunWatch, at: Pin | None) -> tuple[RunRecord | None, list[StepEntry]]:
    with watch.lock:
        if at is None:
            return watch.run, [*watch.shown.counted]
        return watch.run, [*filter(None, [at.with_counts])]


class _Loads(msgspec.Struct, frozen=True):
    """Of one layer, step by step: the mean and the busiest rank, the busiest node, which rank."""

    means: Sequence[float]
    maxima: Sequence[float]
    of_nodes: Sequence[float]
    busiest: Sequence[int]


def _layer(
    run: RunRecord, index: int, loads: _Loads, steps: Sequence[StepEntry], ranks: int
) -> LayerCost | None:
    counted = [at for at, load in enumerate(loads.maxima) if load]
    if not counted:
        return None
    own = Tally(len(steps))
    own.add(loads.means, loads.maxima)
    rows = [steps[at].counts(index) or () for at in counted if run.counts != "top1"]
    return LayerCost(
        *_uneven(own, steps, (index,), bool(run.capacity_factor)),
        layer=run.routers[index].name,
        busiest_rank=mode(loads.busiest[at] for at in counted),
        busiest_pairs=fmean(load for load in loads.maxima if load),
        mean_pairs=fmean(load for load in loads.means if load),
        decode=_reads(rows, run.routers[index], ranks),
    )


def _with_model(
    cost: Cost,
    by_layer: Sequence[_Loads],
    steps: Sequence[StepEntry],
    nodes: int,
    expert_share: float | None,
) -> Cost:
    model, between = Tally(len(steps)), Tally(len(steps))
    for loads in by_layer:
        model.add(loads.means, loads.maxima)
        between.add([mean * cost.ranks / nodes for mean in loads.means], loads.of_nodes)
    if not any(model.maxima):
        return cost
    capped = cost.regime == "capacity"
    uneven = Uneven(*_uneven(model, steps, range(len(by_layer)), capped))
    cost = replace(cost, model=uneven)
    if nodes > 1:
        cost = replace(cost, node_ratio=between.ratio)
    if capped or not expert_share:
        return cost
    slow = [1 + expert_share * (1 / even - 1) for even in model.steps() if even]
    lost = fmean(1 - 1 / time for time in slow)
    return replace(cost, slowdown=fmean(slow), lost_throughput=lost)


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
    size = len(values) // parts
    return [sum(values[at : at + size]) for at in range(0, len(values), size)]


def _uneven(
    tally: Tally, steps: Sequence[StepEntry], routers: Sequence[int], capped: bool
) -> tuple[float, float | None, float | None]:
    if not capped:
        return tally.ratio, 1 - tally.balancedness, None
    rates = [value_at(e.record.router.drop_rate, index) for e in steps for index in routers]
    known = [rate for rate in rates if rate is not None and 0 <= rate <= 1]
    if not known:
        return tally.ratio, None, None
    return tally.ratio, None, fmean(known)


def _reads(rows: Sequence[Sequence[int]], router: RouterInfo, ranks: int) -> Reads | None:
    every = [sum(column) for column in zip(*rows, strict=False)]
    if not router.top_k or len(every) != router.num_experts:
        return None
    each = router.top_k / sum(every)  # a count times this is the share of the tokens, at most 1
    read = [1 - (1 - min(1.0, count * each)) ** _DECODE_TOKENS for count in every]
    loads = _parts(read, ranks)
    return Reads(_DECODE_TOKENS, len(every) // ranks, max(loads), fmean(loads))
