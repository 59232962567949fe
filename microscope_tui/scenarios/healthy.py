"""Healthy runs: a plain one, and a shock and a hot expert, which look like trouble."""

import math
import random

from microscope_tui.scenarios.course import Course, run_along
from microscope_tui.scenarios.popularity import Popularity, constant, pulled, settling
from microscope_tui.scenarios.run import Expected, Run, Shape, around, hot_experts, some_routers


def healthy(shape: Shape, rng: random.Random) -> Run:
    """The load is uneven at first, then even, with a little noise."""
    course = Course(popularity=settling(shape, rng.uniform(0.08, 0.3), rng))
    return run_along(course, shape, rng)


def shock(shape: Shape, rng: random.Random) -> Run:
    """One router falls onto k experts for 20 steps and recovers."""
    middle = around(0.47 * shape.steps, rng)
    sick = some_routers(shape, 1 / shape.routers, rng)

    def pull(step: int) -> float:
        return 5 * math.exp(-(((step - middle) / 12) ** 2)) if abs(step - middle) < 50 else 0.0

    popularity = pulled(settling(shape, 0.2, rng), hot_experts(shape, sick, rng), pull)
    dip = Expected(
        rule="SHOCK", routers=sick, onset=middle - 15, until=middle + 16, severity="info"
    )
    return run_along(Course(popularity=popularity), shape, rng, dip, hard_negative=True)


def hot_expert(
    shape: Shape, rng: random.Random, sigma: float = 0.2, pull: float = math.log(40)
) -> Run:
    """Nearly every token chooses one expert, beside others."""
    sick = some_routers(shape, 1 / shape.routers, rng)
    hot = rng.randrange(shape.num_experts)
    base = constant(shape, sigma, rng)
    popularity = pulled(base, {router: (hot,) for router in sick}, lambda step: pull)
    found = Expected(
        rule="HOT_EXPERT", routers=sick, severity="info", experts=(hot,), tolerance=150
    )
    return run_along(Course(popularity=popularity), shape, rng, found, hard_negative=True)


def settled(shape: Shape, rng: random.Random) -> Popularity:
    """The healthy part of most faulty runs: before the onset, and in the other routers."""
    return settling(shape, rng.uniform(0.1, 0.25), rng)
