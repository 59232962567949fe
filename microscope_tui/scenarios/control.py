"""Runs with faulty balancing, placement, capacity, settings, counts or gradients of the router."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from microscope_tui.scenarios.collapsing import growing
from microscope_tui.scenarios.course import Course, Meter, run_along
from microscope_tui.scenarios.healthy import settled
from microscope_tui.scenarios.popularity import blended, pulled, scaled_to, settling, uneven
from microscope_tui.scenarios.run import Expected, Record, Run, Shape, around, some_routers

TOO_FAST = 0.05
_FOUR_RANKS = (1.68, 0.95, 0.75, 0.62)
_EIGHT_RANKS = (1.7, 1.1, 1.0, 0.95, 0.9, 0.85, 0.78, 0.72)
"""Of every rank; one carries far more than its share, with no conspicuous expert."""
LINT = Expected(rule="LINT")


def bias_limit_cycle(shape: Shape, rng: random.Random) -> Run:
    """The load of every expert swings slowly, each in its turn."""
    share = 2 * math.pi / shape.num_experts
    return oscillation(shape, rng, [share * e for e in range(shape.num_experts)], 24, 0.9)


def oscillation(
    shape: Shape, rng: random.Random, phases: list[float], period: int, swing: float
) -> Run:
    """A fault that swings the load of some routers, from about a fifth of the run on.

    ``phases``: of each expert, in radians; ``period``: in steps; ``swing``: amplitude of the
    logarithm of the popularity.
    """
    sick = some_routers(shape, 0.4, rng)
    onset = around(0.2 * shape.steps, rng)
    base = settled(shape, rng)
    rng.shuffle(phases)

    def popularity(router: int, step: int) -> Sequence[float]:
        weights = base(router, step)
        if step < onset or router not in sick:
            return weights
        turn = 2 * math.pi * step / period
        pairs = zip(weights, phases, strict=True)
        return [weight * math.exp(swing * math.cos(turn + phase)) for weight, phase in pairs]

    course = Course(
        popularity=popularity,
        bias_update_rate=TOO_FAST,
        unheeded=lambda router, step: step >= onset and router in sick,
    )
    found = Expected(rule="OSCILLATION", routers=sick, onset=onset, tolerance=130)
    # In every single step the busiest expert does carry a multiple of its share, and this bias
    # has no effect: it keeps growing for experts that are popular anyway.
    beside = dict.fromkeys(("OVERLOAD", "BIAS_RUNAWAY", "STARVED"), "warn")
    rate = {"method": "bias", "bias_update_rate": TOO_FAST, "update": "sign"}
    return run_along(course, shape, rng, found, allowed=beside, header={"balance": rate})


def bias_runaway(shape: Shape, rng: random.Random) -> Run:
    """The bias grows without effect on a router's preferences."""
    sick = some_routers(shape, 0.3, rng)
    onset = around(0.15 * shape.steps, rng)
    target = rng.uniform(0.42, 0.52)
    even = uneven(shape, 0.15, rng)
    skewed = [list(row) for row in even]
    for router in sick:
        drawn = [rng.gauss(0, 1) for _ in range(shape.num_experts)]
        most = sorted(drawn)[-min(2, shape.top_k)]  # one alone would be a hot expert
        skewed[router] = scaled_to([min(most, log) for log in drawn], shape, target)
    course = Course(
        popularity=blended(even, skewed, growing(onset, 80, limit=1)),
        unheeded=lambda router, step: step >= onset and router in sick,
    )
    found = Expected(rule="BIAS_RUNAWAY", routers=sick, onset=onset, tolerance=200)
    beside = dict.fromkeys(("COLLAPSE", "ERODING", "STARVED", "OVERLOAD"), "warn")
    beside["DEAD"] = "crit"  # of four experts one alone is critical
    return run_along(course, shape, rng, found, allowed=beside)


def overflow(shape: Shape, rng: random.Random) -> Run:
    """An eighth of the experts get far more than their capacity."""
    shape = replace(shape, capacity_factor=1.25)
    sick = some_routers(shape, 1 / shape.routers, rng)
    onset = around(0.3 * shape.steps, rng)
    hot = tuple(sorted(rng.sample(range(shape.num_experts), max(1, shape.num_experts // 8))))
    even = uneven(shape, 0.1, rng)
    still = [[math.exp(log) for log in row] for row in even]
    popularity = pulled(
        lambda router, step: still[router],
        {router: hot for router in sick},
        lambda step: math.log(6) * min(1.0, max(0.0, (step - onset) / 20)),
    )
    course = Course(popularity=popularity, unheeded=lambda r, step: step >= onset and r in sick)
    found = Expected(rule="DROPS", routers=sick, onset=onset, experts=hot)
    beside = {"OVERLOAD": "warn", "BIAS_RUNAWAY": "warn"}
    return run_along(course, shape, rng, found, allowed=beside)


def dead_gradient(shape: Shape, rng: random.Random) -> Run:
    """No gradient reaches the routers: they choose by chance."""
    fair = [1.0] * shape.num_experts
    course = Course(
        popularity=lambda router, step: fair,
        concentration=lambda step: 1e6,
        token_entropy=lambda router, step: 0.992,
        softness=lambda router, step: 0.95,
        router_grad=1e-9,
        bias_update_rate=None,
    )
    found = Expected(
        rule="UNIFORM",
        routers=tuple(range(shape.routers)),
        tolerance=max(500, round(0.3 * shape.steps)) + 25,
    )
    header: Record = {
        "model": {"score_function": "softmax"},
        "balance": {"method": "aux", "aux_weight": 0.01},
    }
    return run_along(course, shape, rng, found, header=header)


def ranks_of(shape: Shape) -> tuple[float, ...]:
    """The loads of the ranks of a skewed run, if the experts fill any."""
    if shape.num_experts >= 32 and shape.num_experts % 8 == 0:
        return _EIGHT_RANKS
    return _FOUR_RANKS if shape.num_experts >= 8 and shape.num_experts % 4 == 0 else ()


def rank_skew(shape: Shape, rng: random.Random) -> Run:
    """One rank does most of the work of some layers."""
    sick = some_routers(shape, 0.3, rng)
    loads = ranks_of(shape)
    each = shape.num_experts // len(loads)
    slope = [1 + 0.03 * (1 - 2 * place / max(1, each - 1)) for place in range(each)]
    skewed = [load * step for load in loads for step in slope]
    base = settling(shape, 0.1, rng)
    course = Course(
        popularity=lambda router, step: skewed if router in sick else base(router, step),
        concentration=lambda step: 1000.0,
    )
    found = Expected(rule="OVERLOAD", routers=sick, tolerance=150)
    header: Record = {"world_size": len(loads), "expert_parallel_size": len(loads)}
    return run_along(course, shape, rng, found, header=header)


def measured(shape: Shape, rng: random.Random, meter: Meter, severity: str) -> Run:
    """A healthy run whose counts are logged wrongly by ``meter``, which METER reports."""
    course = Course(popularity=settled(shape, rng), meter=meter)
    return run_along(course, shape, rng, Expected(rule="METER", severity=severity))


def double_counting(shape: Shape, rng: random.Random) -> Run:
    """The counter runs again in activation recomputation."""
    return measured(shape, rng, lambda router, step, counts: [2 * n for n in counts], "error")


def configured(shape: Shape, rng: random.Random, header: Record) -> Run:
    """A run with the changes ``header`` of its run record, one of which LINT reports."""
    course = Course(popularity=settled(shape, rng))
    if "balance" in header:
        course = replace(course, bias_update_rate=None)
        if header["balance"].get("method") == "aux":
            course = replace(course, losses=lambda counts: {"aux": pooled_aux(counts, shape)})
    return run_along(course, shape, rng, LINT, header=header)


def no_balance(shape: Shape, rng: random.Random) -> Run:
    """No load balancing: no method, or one of weight zero."""
    nothing: Record = {"method": "none"}
    zero: Record = {"method": "aux", "aux_weight": 0.0}
    return configured(shape, rng, {"balance": rng.choice((nothing, zero))})


def pooled_aux(counts: Sequence[Sequence[int]], shape: Shape) -> float:
    """The balancing loss of counts pooled over all routers; its floor is k."""
    pooled = [sum(column) for column in zip(*counts, strict=True)]
    per_choice = shape.top_k / max(1, sum(pooled))
    fractions = [n * per_choice for n in pooled]
    # The mean probability is the load, softened.
    softened = (0.7 * f / shape.top_k + 0.3 / shape.num_experts for f in fractions)
    return shape.num_experts * math.fsum(f * p for f, p in zip(fractions, softened, strict=True))
