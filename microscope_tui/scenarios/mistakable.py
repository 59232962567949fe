"""Runs that are easily mistaken: dead groups, narrow data, long plans, sparse logs."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from microscope_tui.scenarios.collapsing import BESIDE_COLLAPSE, collapsing, fallen, growing
from microscope_tui.scenarios.course import Course, steps
from microscope_tui.scenarios.healthy import settled
from microscope_tui.scenarios.popularity import (
    blended,
    collapse_index,
    constant,
    pulled,
    scaled_to,
    uneven,
)
from microscope_tui.scenarios.run import Record, Run, around, hot_experts, some_routers
from microscope_tui.scenarios.shape import Shape
from microscope_tui.scenarios.truth import Expected, Truth

LONG_PLAN = 100_000
APART = 50
"""Steps between two lines of a sparse log."""


def dead_groups(shape: Shape, rng: random.Random) -> Run:
    """More than half of the experts of a router die at once: a group that is never chosen."""
    (sick,) = some_routers(shape, 1 / shape.routers, rng)
    onset = around(0.2 * shape.steps, rng)
    dying = tuple(sorted(rng.sample(range(shape.num_experts), math.ceil(0.55 * shape.num_experts))))
    popularity = pulled(
        settled(shape, rng), {sick: dying}, lambda step: -30.0 if step >= onset else 0.0
    )
    found = Expected(
        rule="DEAD", routers=(sick,), onset=onset, severity="crit", experts=dying, tolerance=60
    )
    course = Course(popularity=popularity, unheeded=lambda r, step: r == sick and step >= onset)
    truth = Truth(expected=(found,), allowed={**BESIDE_COLLAPSE, "COLLAPSE": "warn"})
    return Run(shape=shape, truth=truth, steps=steps(shape, rng, course))


def narrow_and_steady(shape: Shape, rng: random.Random) -> Run:
    """A fine-tuning on data so narrow that a layer is as uneven as an early collapse, for good."""
    sick = some_routers(shape, 0.3, rng)
    weights = [[math.exp(log) for log in row] for row in _narrow(shape, sick, rng)]
    course = Course(
        popularity=lambda router, step: weights[router], concentration=lambda step: 120.0
    )
    return Run(
        shape=shape,
        truth=Truth(profile="finetune", hard_negative=True),
        header={"profile": "finetune"},
        steps=steps(shape, rng, course),
    )


def finetune_collapse(shape: Shape, rng: random.Random) -> Run:
    """A fine-tuning on narrow data whose layer falls onto k experts all the same."""
    sick, onset = some_routers(shape, 1 / shape.routers, rng), around(0.4 * shape.steps, rng)
    weights = [[math.exp(log) for log in row] for row in _narrow(shape, sick, rng)]
    popularity = pulled(
        lambda router, step: weights[router],
        hot_experts(shape, sick, rng),
        growing(onset, 6, limit=25),
    )
    # Uneven before, it is "collapsed" from the start by the limit of a pretraining.
    found = Expected(rule="COLLAPSE", routers=sick, onset=onset, severity="crit", tolerance=100)
    return Run(
        shape=shape,
        truth=Truth(expected=(found,), allowed=BESIDE_COLLAPSE, profile="finetune"),
        header={"profile": "finetune"},
        steps=steps(shape, rng, collapsing(popularity, sick, onset, confident=True)),
    )


def parting(shape: Shape, rng: random.Random) -> Run:
    """Experts part from an equal start, to c 0.75 to 0.8, and stay so: they have specialised."""
    begin, last = around(0.15 * shape.steps, rng), around(0.2 * shape.steps, rng)
    target = rng.uniform(0.75, 0.8)
    drawn = [[rng.uniform(-1, 1) for _ in range(shape.num_experts)] for _ in range(shape.routers)]
    apart = [scaled_to(row, shape, target) for row in drawn]
    course = Course(
        popularity=blended(
            uneven(shape, 0.02, rng),
            apart,
            lambda step: min(1.0, max(0.0, (step - begin) / last)),
        )
    )
    truth = Truth(allowed={"STARVED": "warn"}, hard_negative=True)  # one may be below a tenth
    return Run(shape=shape, truth=truth, steps=steps(shape, rng, course))


def long_plan(shape: Shape, rng: random.Random) -> Run:
    """A layer that is even falls within the long warm-up of a long plan."""
    sick, onset = some_routers(shape, 0.3, rng), around(150, rng)
    popularity = pulled(constant(shape, 0.1, rng), hot_experts(shape, sick, rng), growing(onset, 4))
    found = fallen(popularity, sick, shape, onset)
    return Run(
        shape=shape,
        truth=Truth(expected=(found,), allowed=BESIDE_COLLAPSE),
        header={"planned_steps": LONG_PLAN},
        steps=steps(shape, rng, collapsing(popularity, sick, onset, confident=False)),
    )


def sparse(shape: Shape, rng: random.Random) -> Run:
    """A collapse in a log with a line for every fiftieth step."""
    sick = some_routers(shape, 0.3, rng)
    line = around(0.4 * shape.steps, rng)
    popularity = pulled(constant(shape, 0.2, rng), hot_experts(shape, sick, rng), growing(line, 1))
    found = fallen(popularity, sick, shape, line)
    found = replace(found, onset=found.onset * APART, tolerance=25 * APART)

    def spread(records: Iterator[Record]) -> Iterator[Record]:
        for record in records:
            if "step" in record:
                record["step"] *= APART
            yield record

    return Run(
        shape=shape,
        truth=Truth(expected=(found,), allowed=BESIDE_COLLAPSE),
        header={"planned_steps": shape.steps * APART},
        steps=steps(shape, rng, collapsing(popularity, sick, line, confident=True)),
        edit=spread,
    )


def _narrow(shape: Shape, routers: Sequence[int], rng: random.Random) -> list[list[float]]:
    """Logarithms of popularity; in some routers c is 0.2 to 0.33, and no expert has them all."""
    rows = uneven(shape, 0.4, rng)
    for router in routers:
        target = rng.uniform(0.2, 0.33)
        rows[router] = _few_busy(shape, target, rng)
    return rows


def _few_busy(shape: Shape, target: float, rng: random.Random) -> list[float]:
    """Some experts share most of the tokens, and the others what brings c to ``target``."""
    busy = round(shape.top_k + 0.7 * target * (shape.num_experts - shape.top_k))
    chosen = set(rng.sample(range(shape.num_experts), max(shape.top_k + 1, busy)))
    low, high = 0.0, 12.0  # how far the others are below
    for _ in range(40):
        gap = (low + high) / 2
        logs = [0.0 if e in chosen else -gap for e in range(shape.num_experts)]
        if collapse_index([math.exp(log) for log in logs], shape) > target:
            low = gap
        else:
            high = gap
    return [log + rng.gauss(0, 0.05) for log in logs]
