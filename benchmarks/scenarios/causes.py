"""Planted causes, which the first line of a report must name; and healthy runs that resemble them.

Base loads are uneven, few layers are sick, and onsets lie at odd places.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain

from benchmarks.scenarios.lookalikes import (
    fall,
    few_busy,
    groups_of,
    modulated,
    narrow_and_steady,
    run_of as _run,
)
from benchmarks.scenarios.variants import forced_balance, wave
from microscope_tui.scenarios import several_choices
from microscope_tui.scenarios.collapsing import growing
from microscope_tui.scenarios.control import LINT, ranks_of
from microscope_tui.scenarios.course import Course, falling_loss, steps
from microscope_tui.scenarios.popularity import blended, constant, pulled, uneven
from microscope_tui.scenarios.run import Expected, Record, Run, Shape, Truth, around, some_routers

Edit = Callable[[Iterator[Record]], Iterator[Record]]
Logs = list[float]
_COLLAPSE = Expected(rule="COLLAPSE")
_UNBALANCED: Record = {"balance": {"method": "none"}}


def before(at: int, **event: object) -> Edit:
    """An event before step ``at``; by default the run resumes there."""

    def edit(records: Iterator[Record]) -> Iterator[Record]:
        resumed: Record = {}
        for record in records:
            if record["kind"] == "run":
                resumed = record | {"resumed_at_step": at}
            elif record["kind"] == "step" and record["step"] == at:
                yield (event or resumed) | {"time": record["time"]}
            yield record

    return edit


def aux_off(shape: Shape, rng: random.Random) -> Run:
    """An auxiliary loss is configured, and the model never returns it."""
    onset = around(0.3 * shape.steps, rng)
    course, found = fall(shape, rng, onset, 30, confident=True, bias_update_rate=None)
    balance = {"method": "aux", "aux_weight": 0.01, "output_router_logits": False}
    header = {"model": {"score_function": "softmax"}, "balance": balance}
    return _run(shape, rng, course, LINT, found, cause="not applied", header=header)


def unbalanced(shape: Shape, rng: random.Random) -> Run:
    """No balancing: some layers fall early and slowly."""
    course, found = fall(shape, rng, around(0.1 * shape.steps, rng), 50, bias_update_rate=None)
    return _run(shape, rng, course, LINT, found, cause="no load", header=_UNBALANCED)


def frozen(shape: Shape, rng: random.Random) -> Run:
    """A fine-tuning of all but the routers: what they read drifts, until a layer falls."""
    onset = around(0.4 * shape.steps, rng)
    course, found = fall(shape, rng, onset, 10, bias_update_rate=None, router_grad=0.0)
    header = {"profile": "finetune"} | _UNBALANCED
    return _run(shape, rng, course, found, cause="frozen", header=header)


def too_slow(shape: Shape, rng: random.Random) -> Run:
    """A rate made for sigmoid scores on softmax logits: the bias grows on, and layers fall."""
    course, found = fall(shape, rng, around(0.08 * shape.steps, rng), 60, bias_update_rate=1e-4)
    runaway = replace(found, rule="BIAS_RUNAWAY", severity="warn", tolerance=200)
    balance = {"method": "bias", "bias_update_rate": 1e-4}
    header = {"model": {"score_function": "softmax"}, "balance": balance}
    return _run(shape, rng, course, found, runaway, cause="too slow", header=header)


def too_fast(shape: Shape, rng: random.Random) -> Run:
    """A rate at which most layers swing, and another one collapses all the same."""
    onset, period = around(0.2 * shape.steps, rng), rng.choice((2, 3, 7, 24))
    course, found = fall(shape, rng, onset, 30, 1 / shape.routers)
    others = tuple(r for r in range(shape.routers) if r not in found.routers)[-4:]
    phases = [2 * math.pi * rng.randrange(period) / period for _ in range(shape.num_experts)]
    swung = wave(period, 0.9, phases)

    def factor(router: int, expert: int, step: int) -> float:
        return swung(router, expert, step) if step >= onset and router in others else 1.0

    course = replace(course, popularity=modulated(course.popularity, factor), bias_update_rate=0.3)
    swing = Expected(rule="OSCILLATION", routers=others, onset=onset, tolerance=130)
    header = {"balance": {"method": "bias", "bias_update_rate": 0.3}}
    return _run(shape, rng, course, found, swing, cause="too high", header=header)


def diverging(shape: Shape, rng: random.Random) -> Run:
    """Within 20 steps of the warm-up logits explode, tokens become certain and all layers fall."""
    onset = around(25, rng)

    def calm(step: int) -> float:
        return min(1.0, max(0.0, 1 - (step - onset) / 20))

    course, found = fall(
        *(shape, rng, onset, 2, 1.0),
        z_scale=lambda router, step: 45 - 44 * calm(step),
        token_entropy=lambda router, step: max(0.003, 0.95 * calm(step)),
        softness=lambda router, step: 0.1 * calm(step),
        bias_update_rate=None,
    )
    logits = replace(found, rule="LOGITS", severity="warn", tolerance=40)
    header = {"balance": {"method": "aux", "aux_weight": 0.02, "output_router_logits": True}}
    return _run(shape, rng, course, logits, found, cause="learning rate", header=header)


def restart(shape: Shape, rng: random.Random) -> Run:
    """Layers fall soon after the training started again."""
    at = around(0.4 * shape.steps, rng)
    course, found = fall(shape, rng, at + rng.randint(2, 20), 8)
    return _run(shape, rng, course, found, cause="restart", edit=before(at))


def jump(
    shape: Shape, rng: random.Random, share: float = 0.4,
    drawn: Callable[[Logs], Logs] | None = None, found: Expected = _COLLAPSE,
    at: float = 0.43,
) -> tuple[Course, Expected]:  # fmt: skip
    """The load of some routers jumps at one step: by default onto few experts."""
    onset, before = around(at * shape.steps, rng), uneven(shape, 0.3, rng)
    sick = some_routers(shape, share, rng)
    drawn = drawn or (lambda row: few_busy(shape, rng.uniform(0.18, 0.28), rng))
    after = [drawn(row) if router in sick else row for router, row in enumerate(before)]
    course = Course(popularity=blended(before, after, lambda step: float(step >= onset)))
    return course, replace(found, routers=sick, onset=onset)


def bias_lost(shape: Shape, rng: random.Random) -> Run:
    """A resume without the biases: they stay near zero, and some layers uneven."""
    course, found = jump(shape, rng)
    lint = replace(LINT, onset=found.onset, tolerance=250)
    run = _run(shape, rng, course, lint, found, cause="lost", edit=before(found.onset))
    without = steps(shape, rng, replace(course, bias_update_rate=1e-15), first=found.onset)
    first = steps(shape, rng, course, last=found.onset - 1)
    return replace(run, steps=chain(first, without))


def rank_lost(shape: Shape, rng: random.Random) -> Run:
    """The experts of one rank get nothing since a resume."""
    ranks = len(ranks_of(shape))
    each, rank = shape.num_experts // ranks, rng.randrange(ranks)
    gone = tuple(range(rank * each, (rank + 1) * each))
    dead = Expected(rule="DEAD", experts=gone, severity="crit", tolerance=60)

    def without(row: Logs) -> Logs:
        return [log - 40 * (e in gone) for e, log in enumerate(row)]

    course, found = jump(shape, rng, 1.0, without, dead)
    header, edit = {"world_size": ranks, "expert_parallel_size": ranks}, before(found.onset)
    return _run(shape, rng, course, found, cause=f"rank {rank}", header=header, edit=edit)


def data_switch(shape: Shape, rng: random.Random) -> Run:
    """The loss and the load of several layers jump at a step; half of the logs have an event."""
    course, found = jump(shape, rng, 0.75)
    learned, at = falling_loss(shape), found.onset
    course = replace(course, loss=lambda step: learned(step) + 0.8 * (step >= at))
    edit = before(at, kind="event", event="data", step=at) if rng.random() < 0.5 else None
    return _run(shape, rng, course, found, cause="change", edit=edit)


def small_capacity(shape: Shape, rng: random.Random) -> Run:
    """Experts are full although the load is even."""
    shape = replace(shape, capacity_factor=rng.uniform(0.8, 0.9))
    found = Expected(rule="DROPS", routers=tuple(range(shape.routers)), tolerance=130)
    course = Course(popularity=constant(shape, 0.1, rng))
    return _run(shape, rng, course, found, cause="capacity")


def can_be_hot(shape: Shape) -> bool:
    """One expert is a large part of the load."""
    return several_choices(shape) and shape.num_experts <= 16


def hot_and_narrow(shape: Shape, rng: random.Random) -> Run:
    """One expert has nearly all tokens, and few others share the rest: no shared expert."""
    rest = replace(shape, num_experts=shape.num_experts - 1, top_k=shape.top_k - 1)

    def drawn(_: Logs) -> Logs:
        row, share = few_busy(rest, rng.uniform(0.36, 0.4), rng), rng.uniform(0.97, 0.995)
        return [math.log(share * math.fsum(map(math.exp, row)) / (shape.top_k - share)), *row]

    return _run(shape, rng, *jump(shape, rng, 0.4, drawn))


def idle_in_turn(shape: Shape, rng: random.Random) -> Run:
    """Half of the experts of some layers are idle for 40 steps, then the other half."""
    sick, half = some_routers(shape, 0.3, rng), groups_of(shape.num_experts, 2, rng)

    def factor(router: int, expert: int, step: int) -> float:
        return 0.03 if router in sick and half[expert] == step // 40 % 2 else 1.0

    course = Course(popularity=modulated(constant(shape, 0.3, rng), factor))
    return _run(shape, rng, course, Expected(rule="STARVED", routers=sick, tolerance=700))


def _logged(shape: Shape, rng: random.Random, change: Callable[[int, int, Logs], Logs]) -> Run:
    """Some routers log something else than their counts."""
    onset, sick = around(0.3 * shape.steps, rng), some_routers(shape, 0.3, rng)
    course = Course(
        popularity=constant(shape, 0.3, rng),
        meter=lambda r, step, row: change(r, step, row) if r in sick and step >= onset else row,
    )
    found = Expected(rule="METER", routers=sick, onset=onset, tolerance=250)
    return _run(shape, rng, course, found, cause="meter")


def stale_rows(shape: Shape, rng: random.Random) -> Run:
    """A buffer that is not reset: some layers log each row several times."""
    kept, every = dict[tuple[int, int], list[int]](), rng.randint(4, 40)
    return _logged(shape, rng, lambda r, step, row: kept.setdefault((r, step // every), row))


def wrong_sums(shape: Shape, rng: random.Random) -> Run:
    """Some tokens are lost in one line of three to seven."""
    lost, every = rng.randint(1, 5), rng.randint(3, 7)

    def change(r: int, step: int, row: Logs) -> Logs:
        return [max(0, row[0] - lost * (step % every == 0)), *row[1:]]

    return _logged(shape, rng, change)


def same_batch(shape: Shape, rng: random.Random) -> Run:
    """One batch again and again at a learning rate of zero: the rows repeat, and are right."""
    rows: dict[int, list[int]] = {}
    course = Course(
        popularity=constant(shape, 0.3, rng),
        learning_rate=lambda step: 0.0,
        meter=lambda router, step, row: rows.setdefault(router, row),
    )
    truth = Truth(hard_negative=True, allowed={"DEAD": "warn"})  # of experts that it never chose
    return replace(_run(shape, rng, course), truth=truth)


def frozen_steady(shape: Shape, rng: random.Random) -> Run:
    """A fine-tuning on narrow data with frozen routers: nothing to balance."""
    run = narrow_and_steady(shape, rng, router_grad=0.0, bias_update_rate=None)
    return replace(run, header={"profile": "finetune"} | _UNBALANCED)


def sinkhorn(shape: Shape, rng: random.Random) -> Run:
    """Balanced by construction: equal counts are what this method makes."""
    header = {"balance": {"method": "sinkhorn"}}
    return replace(forced_balance(shape, rng), truth=Truth(hard_negative=True), header=header)


def hot_rising(shape: Shape, rng: random.Random) -> Run:
    """An expert slowly becomes a shared one, and the others stay even."""
    hot = {r: (rng.randrange(shape.num_experts),) for r in some_routers(shape, 0.3, rng)}
    pull = growing(around(0.2 * shape.steps, rng), 40, limit=7)
    return _run(shape, rng, Course(popularity=pulled(constant(shape, 0.15, rng), hot, pull)))


def growing_logits(shape: Shape, rng: random.Random) -> Run:
    """The z-loss of a healthy router grows thirtyfold in 300 steps, as in many models."""
    base = constant(shape, 0.3, rng)
    grown = Course(popularity=base, z_scale=lambda router, step: 1 + 29 * min(1.0, step / 300))
    return _run(shape, rng, grown)


def probed_collapse(shape: Shape, rng: random.Random) -> Run:
    """A finished model on a few texts: some layers send all tokens to k experts."""
    course, found = fall(shape, rng, 0, 0.1)
    return _run(shape, rng, course, replace(found, onset=1), header={"profile": "eval"})


def probed_narrow(shape: Shape, rng: random.Random) -> Run:
    """A healthy model on a few narrow texts."""
    course = Course(popularity=constant(shape, 1.0, rng))
    return _run(shape, rng, course, header={"profile": "eval"})
