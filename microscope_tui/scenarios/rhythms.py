"""Loads that change from step to step: swings of every kind, and data that only looks like one."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

from microscope_tui.scenarios.control import TOO_FAST
from microscope_tui.scenarios.course import Course, steps
from microscope_tui.scenarios.healthy import settled
from microscope_tui.scenarios.popularity import Popularity, constant
from microscope_tui.scenarios.run import Run, around, some_routers
from microscope_tui.scenarios.shape import Shape, Step
from microscope_tui.scenarios.truth import Expected, Truth

SLOWEST = 32
"""Steps of the longest period that OSCILLATION can see."""
_ODD_PERIODS = (3.0, 3.0, 5.0, 7.0, 2.5, 3.4)
_RHYTHMS = ((1, 2), (1, 1, 2), (1, 4), (1, 1, 1, 3), (1, 2, 3, 2))
_NOTHING = 1e-9

Weight = Callable[[int, int, int], float]
"""``factor(router, expert, step)``: what the rhythm makes of an expert's weight."""


def modulated(base: Popularity, factor: Weight) -> Popularity:
    """``base`` with every weight multiplied by ``factor``."""

    def popularity(router: int, step: int) -> Sequence[float]:
        weights = base(router, step)
        return [weight * factor(router, e, step) for e, weight in enumerate(weights)]

    return popularity


def data_in_blocks(shape: Shape, rng: random.Random) -> Run:
    """The data comes in blocks of 30 to 40 steps; in each a quarter of the experts rests."""
    quarters = [_groups(shape.num_experts, 4, rng) for _ in range(shape.routers)]
    lengths = [rng.randint(30, 40) for _ in range(shape.steps // 30 + 1)]
    kinds = [0]
    for _ in lengths:
        kinds.append((kinds[-1] + rng.randint(1, 3)) % 4)  # never the same one again at once
    kind_at = [kind for kind, length in zip(kinds, lengths, strict=False) for _ in range(length)]

    def factor(router: int, expert: int, step: int) -> float:
        return _NOTHING if quarters[router][expert] == kind_at[step - 1] else 1.0

    course = Course(
        popularity=modulated(constant(shape, 0.3, rng), factor),
        concentration=lambda step: 120.0,
    )
    return Run(shape=shape, truth=Truth(hard_negative=True), steps=steps(shape, rng, course))


def rotation(shape: Shape, rng: random.Random) -> Run:
    """Three groups of experts or more take turns; the others get next to nothing meanwhile."""
    most = max(3, min(12, shape.num_experts // max(1, shape.top_k)))
    groups = rng.randint(3, most)
    hold = rng.randint(1, max(1, min(5, SLOWEST // groups)))
    swing = rng.uniform(1.5, 12.0)
    of = [_groups(shape.num_experts, groups, rng) for _ in range(shape.routers)]

    def factor(router: int, expert: int, step: int) -> float:
        return 1.0 if of[router][expert] == step // hold % groups else math.exp(-swing)

    return _swinging(shape, rng, factor, sigma=0.4)


def odd_period(shape: Shape, rng: random.Random) -> Run:
    """The load swings smoothly with a period of three steps, five, or two and a half."""
    period, swing = rng.choice(_ODD_PERIODS), rng.uniform(0.8, 1.3)
    phases = [2 * math.pi * rng.randrange(3) / 3 for _ in range(shape.num_experts)]

    def factor(router: int, expert: int, step: int) -> float:
        return math.exp(swing * math.cos(2 * math.pi * step / period + phases[expert]))

    return _swinging(shape, rng, factor, sigma=0.3)


def slow_swing(shape: Shape, rng: random.Random) -> Run:
    """A swing with a period of 40 to 80 steps, too long to distinguish from blocks of data."""
    period, swing = rng.uniform(40, 80), rng.uniform(0.6, 1.0)
    phases = [rng.uniform(0, 2 * math.pi) for _ in range(shape.num_experts)]

    def factor(router: int, expert: int, step: int) -> float:
        return math.exp(swing * math.cos(2 * math.pi * step / period + phases[expert]))

    run = _swinging(shape, rng, factor, sigma=0.2)
    allowed = {"OSCILLATION": "warn", "BIAS_RUNAWAY": "warn"}  # correct if it is detected
    return replace(run, truth=Truth(allowed=allowed, hard_negative=True))


def alternating_tokens(shape: Shape, rng: random.Random) -> Run:
    """Steps of one and of two times the tokens take turns; every expert keeps its share."""
    rhythm = rng.choice(_RHYTHMS)
    course = Course(popularity=constant(shape, 0.4, rng))

    def scaled(step: Step) -> Step:
        times = rhythm[step.step % len(rhythm)]
        rows = [[n * times for n in row] if row else row for row in step.tokens_per_expert]
        return replace(step, tokens=step.tokens * times, tokens_per_expert=rows)

    scaled_steps: Iterator[Step] = map(scaled, steps(shape, rng, course))
    return Run(shape=shape, truth=Truth(hard_negative=True), steps=scaled_steps)


def _swinging(shape: Shape, rng: random.Random, factor: Weight, sigma: float) -> Run:
    """Some routers swing from an onset on, around an uneven load and with noise of their own."""
    sick = some_routers(shape, 0.4, rng)
    onset = around(0.2 * shape.steps, rng)
    well, ill = settled(shape, rng), constant(shape, sigma, rng)
    swung = modulated(ill, factor)

    def popularity(router: int, step: int) -> Sequence[float]:
        swings = step >= onset and router in sick
        return swung(router, step) if swings else (ill if router in sick else well)(router, step)

    course = Course(
        popularity=popularity,
        concentration=lambda step: 60.0,
        bias_update_rate=TOO_FAST,
        unheeded=lambda router, step: step >= onset and router in sick,
    )
    found = Expected(rule="OSCILLATION", routers=sick, onset=onset, tolerance=130)
    allowed = {"OVERLOAD": "warn", "BIAS_RUNAWAY": "warn"}
    return Run(
        shape=shape,
        truth=Truth(expected=(found,), allowed=allowed),
        header={"balance": {"method": "bias", "bias_update_rate": TOO_FAST}},
        steps=steps(shape, rng, course),
    )


def _groups(experts: int, groups: int, rng: random.Random) -> list[int]:
    """The group of every expert; groups of as equal a size as can be."""
    ends = list(accumulate([experts // groups + (g < experts % groups) for g in range(groups)]))
    drawn = [next(g for g, end in enumerate(ends) if e < end) for e in range(experts)]
    rng.shuffle(drawn)
    return drawn
