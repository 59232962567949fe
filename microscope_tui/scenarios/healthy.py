"""Healthy runs, plain ones and such as look like trouble."""

import math
import random
from dataclasses import replace

from microscope_tui.scenarios.course import Course, steps
from microscope_tui.scenarios.popularity import (
    Popularity,
    blended,
    constant,
    pulled,
    settling,
    uneven,
)
from microscope_tui.scenarios.run import Record, Run, around, hot_experts, some_routers
from microscope_tui.scenarios.shape import Shape
from microscope_tui.scenarios.truth import Expected, Truth

LOOKS_SICK = Truth(hard_negative=True)


def healthy(shape: Shape, rng: random.Random) -> Run:
    """Uneven at the start, even after the first steps, with a little noise."""
    course = Course(popularity=settling(shape, rng.uniform(0.08, 0.3), rng))
    return Run(shape=shape, truth=Truth(), steps=steps(shape, rng, course))


def specialised(shape: Shape, rng: random.Random) -> Run:
    """Specialised experts: confident tokens, uneven but steady load."""
    level = rng.uniform(0.22, 0.3)
    course = Course(
        popularity=constant(shape, 0.7, rng),
        concentration=lambda step: 120.0,
        token_entropy=lambda router, step: max(level, 0.98 - step / 400),
    )
    return Run(shape=shape, truth=LOOKS_SICK, steps=steps(shape, rng, course))


def soft(shape: Shape, rng: random.Random) -> Run:
    """Token entropy near its maximum for ever, yet the routing is learned."""
    level = rng.uniform(0.978, 0.988)
    course = Course(
        popularity=constant(shape, 0.2, rng),
        token_entropy=lambda router, step: level,
        softness=lambda router, step: 0.9,
    )
    return Run(shape=shape, truth=LOOKS_SICK, steps=steps(shape, rng, course))


def warm_up(shape: Shape, rng: random.Random) -> Run:
    """k experts take most tokens in the first steps, with drops; recovers by itself."""
    shape = replace(shape, capacity_factor=1.5)
    hot = hot_experts(shape, tuple(range(shape.routers)), rng)
    pace = 40 * rng.uniform(0.9, 1.1)
    popularity = pulled(
        constant(shape, 0.12, rng),
        hot,
        lambda step: 3 * math.exp(-step / pace) if step < 400 else 0.0,
    )
    return Run(
        shape=shape, truth=LOOKS_SICK, steps=steps(shape, rng, Course(popularity=popularity))
    )


def small_batch(shape: Shape, rng: random.Random) -> Run:
    """96 tokens a step: most of the unevenness is chance."""
    shape = replace(shape, tokens=96)
    course = Course(popularity=constant(shape, 0.2, rng), concentration=lambda step: 60.0)
    return Run(shape=shape, truth=LOOKS_SICK, steps=steps(shape, rng, course))


def domain_bursts(shape: Shape, rng: random.Random) -> Run:
    """For 40 of every 200 steps the batches are of one kind and the load jumps about."""
    offset = rng.randrange(200)
    course = Course(
        popularity=constant(shape, 0.35, rng),
        concentration=lambda step: 25.0 if (step + offset) % 200 < 40 else 400.0,
    )
    return Run(shape=shape, truth=LOOKS_SICK, steps=steps(shape, rng, course))


def shock(shape: Shape, rng: random.Random) -> Run:
    """One router falls onto k experts for some twenty steps and comes back."""
    middle = around(0.47 * shape.steps, rng)
    sick = some_routers(shape, 1 / shape.routers, rng)

    def pull(step: int) -> float:
        return 5 * math.exp(-(((step - middle) / 12) ** 2)) if abs(step - middle) < 50 else 0.0

    popularity = pulled(settling(shape, 0.2, rng), hot_experts(shape, sick, rng), pull)
    dip = Expected(
        rule="SHOCK", routers=sick, onset=middle - 15, until=middle + 16, severity="info"
    )
    return Run(
        shape=shape,
        truth=Truth(expected=(dip,), hard_negative=True),
        steps=steps(shape, rng, Course(popularity=popularity)),
    )


def narrow_finetune(shape: Shape, rng: random.Random) -> Run:
    """A good model on narrow data: uneven from the first step on."""
    level = rng.uniform(0.3, 0.5)
    course = Course(
        popularity=constant(shape, 0.875, rng),
        concentration=lambda step: 120.0,
        token_entropy=lambda router, step: level,
    )
    return Run(
        shape=shape,
        truth=Truth(profile="finetune", hard_negative=True),
        header={"profile": "finetune"},
        steps=steps(shape, rng, course),
    )


def hot_expert(shape: Shape, rng: random.Random) -> Run:
    """One expert is chosen by nearly every token beside others: a shared expert in fact."""
    return _hot(shape, rng, 0.2, math.log(40))


def even_but_one(shape: Shape, rng: random.Random) -> Run:
    """Every token chooses the same expert of a router, and the other choices are even."""
    return _hot(shape, rng, 0.02, 12.0)


def _hot(shape: Shape, rng: random.Random, sigma: float, pull: float) -> Run:
    sick = some_routers(shape, 1 / shape.routers, rng)
    hot = rng.randrange(shape.num_experts)
    base = constant(shape, sigma, rng)
    popularity = pulled(base, {router: (hot,) for router in sick}, lambda step: pull)
    found = Expected(
        rule="HOT_EXPERT", routers=sick, severity="info", experts=(hot,), tolerance=150
    )
    return Run(
        shape=shape,
        truth=Truth(expected=(found,), hard_negative=True),
        steps=steps(shape, rng, Course(popularity=popularity)),
    )


def upcycled(shape: Shape, rng: random.Random) -> Run:
    """Experts that begin as copies: even load and uniform tokens until they have parted."""
    begin = around(0.2 * shape.steps, rng)
    parting = 0.3 * shape.steps

    def progress(step: int) -> float:
        return min(1.0, max(0.0, (step - begin) / parting))

    course = Course(
        popularity=blended(uneven(shape, 0.02, rng), uneven(shape, 0.3, rng), progress),
        token_entropy=lambda router, step: 0.997 - 0.3 * progress(step),
        softness=lambda router, step: 1 - 0.8 * progress(step),
    )
    config: Record = {"config": {"upcycled": True}}
    return Run(shape=shape, truth=LOOKS_SICK, header=config, steps=steps(shape, rng, course))


def settled(shape: Shape, rng: random.Random) -> Popularity:
    """The healthy part of most faulty runs: before the onset, and in the other routers."""
    return settling(shape, rng.uniform(0.1, 0.25), rng)
