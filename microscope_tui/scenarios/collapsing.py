"""Runs whose routers fall onto k experts, or whose experts starve or die."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from microscope_tui.scenarios.course import (
    ByStep,
    Course,
    Meter,
    falling_loss,
    run_along,
    sharpening,
)
from microscope_tui.scenarios.healthy import settled
from microscope_tui.scenarios.popularity import (
    Popularity,
    constant,
    first_collapsed,
    pulled,
    settling,
)
from microscope_tui.scenarios.run import (
    Expected,
    Run,
    Shape,
    Truth,
    around,
    hot_experts,
    some_routers,
)

BESIDE_COLLAPSE = {
    "ERODING": "warn",
    "DEAD": "crit",
    "STARVED": "warn",
    "OVERLOAD": "warn",
    "DROPS": "crit",
    "BIAS_RUNAWAY": "warn",
}
"""Its other experts get nothing, and no bias revives them."""


def growing(onset: int, every: float, limit: float = 20.0) -> ByStep:
    """A log-weight that grows by 1 in ``every`` steps from ``onset`` on."""
    return lambda step: min(limit, max(0.0, (step - onset) / every))


def collapsing(
    popularity: Popularity, sick: Sequence[int], onset: int, *, confident: bool
) -> Course:
    """A course with routers that fall from ``onset`` on, confident ones certain of every token."""

    share_of = growing(onset, 100, limit=1.0)

    def fallen(router: int, step: int) -> float:
        return share_of(step) if router in sick else 0.0

    def token_entropy(router: int, step: int) -> float:
        share = fallen(router, step)
        return sharpening(router, step) * (1 - share) + (0.35 if confident else 0.72) * share

    def softness(router: int, step: int) -> float:
        return 0.1 + (-0.08 if confident else 0.6) * fallen(router, step)

    return Course(
        popularity=popularity,
        token_entropy=token_entropy,
        softness=softness,
        unheeded=lambda router, step: step >= onset and router in sick,
    )


def fallen(
    popularity: Popularity, sick: tuple[int, ...], shape: Shape, start: int, severity: str = "crit"
) -> Expected:
    """The collapse caused by a pull from ``start`` on.

    Both onsets are correct: where the pull begins, and where the router counts as collapsed.
    """
    slide = first_collapsed(popularity, sick, shape, start) - start
    return Expected(
        rule="COLLAPSE", routers=sick, onset=start, severity=severity, tolerance=slide + 25
    )


def collapse(shape: Shape, rng: random.Random) -> Run:
    """One layer falls onto k experts, a third into the run."""
    sick, onset = ((2 * shape.routers) // 3,), shape.steps // 3
    hot = hot_experts(shape, sick, rng)
    popularity = pulled(settling(shape, 0.08, rng), hot, growing(onset, 8, limit=9))
    course = collapsing(popularity, sick, onset, confident=True)
    found = fallen(popularity, sick, shape, onset)
    return run_along(course, shape, rng, found, allowed=BESIDE_COLLAPSE)


def slow_collapse(
    shape: Shape, rng: random.Random, meter: Meter | None = None, severity: str = "crit"
) -> Run:
    """k experts win a little every step; the loss keeps falling."""
    sick = some_routers(shape, 1 / shape.routers, rng)
    onset = around(0.2 * shape.steps, rng)
    popularity = pulled(settled(shape, rng), hot_experts(shape, sick, rng), growing(onset, 60))
    course = replace(collapsing(popularity, sick, onset, confident=True), meter=meter)
    eroding = Expected(rule="ERODING", routers=sick, onset=onset, tolerance=150)
    found = fallen(popularity, sick, shape, onset, severity)
    return run_along(course, shape, rng, eroding, found, allowed=BESIDE_COLLAPSE)


def dead_experts(shape: Shape, rng: random.Random) -> Run:
    """A sixteenth of the experts of one router fade away."""
    (sick,) = some_routers(shape, 1 / shape.routers, rng)
    fading = around(0.13 * shape.steps, rng)
    dying = tuple(sorted(rng.sample(range(shape.num_experts), max(1, shape.num_experts // 16))))
    popularity = pulled(
        settled(shape, rng), {sick: dying}, lambda step: -max(0, step - fading) / 30
    )

    def expected_count(step: int) -> float:
        weights = popularity(sick, step)
        return shape.tokens * shape.top_k * max(weights[e] for e in dying) / math.fsum(weights)

    gone = (step for step in range(fading, shape.steps) if expected_count(step) < 0.5)
    found = Expected(
        rule="DEAD",
        routers=(sick,),
        onset=next(gone, shape.steps),
        experts=dying,
        tolerance=round(0.1 * shape.steps),
    )
    course = Course(popularity=popularity, unheeded=lambda r, step: r == sick and step >= fading)
    beside = {"STARVED": "warn", "BIAS_RUNAWAY": "warn"}
    return run_along(course, shape, rng, found, allowed=beside)


def divergence(shape: Shape, rng: random.Random) -> Run:
    """Gradients and logits blow up, then half of the routers fall."""
    sick = some_routers(shape, 0.5, rng)
    onset = around(0.587 * shape.steps, rng)
    logits, load = onset + 20, onset + 70
    learned = falling_loss(shape)
    popularity = pulled(settled(shape, rng), hot_experts(shape, sick, rng), growing(load, 20))

    gradient, logit, worse = growing(onset, 25, 9), growing(logits, 60, 5), growing(load, 60, 4)
    course = replace(
        collapsing(popularity, sick, load, confident=True),
        grad_scale=lambda step: math.exp(gradient(step)),
        z_scale=lambda router, step: math.exp(logit(step)) if router in sick else 1.0,
        loss=lambda step: learned(step) + worse(step),
    )
    found = (
        Expected(rule="GRADSPIKE", onset=onset, tolerance=75),
        Expected(rule="LOGITS", routers=sick, onset=logits, tolerance=90),
        fallen(popularity, sick, shape, load),
    )
    return run_along(course, shape, rng, *found, allowed=BESIDE_COLLAPSE, cause="learning rate")


def levelled(base: Popularity, chosen: Mapping[int, Sequence[int]], level: ByStep) -> Popularity:
    """``base`` where some experts have ``level(step)`` of the mean share."""

    def popularity(router: int, step: int) -> Sequence[float]:
        weights = base(router, step)
        experts = chosen.get(router, ())
        rest = math.fsum(weights) - math.fsum(weights[e] for e in experts)
        share = level(step)
        mean = rest / max(1e-9, len(weights) - share * len(experts))
        changed = list(weights)
        for expert in experts:
            changed[expert] = share * mean
        return changed

    return popularity


def starving(shape: Shape, rng: random.Random) -> Run:
    """In a fine-tuning an eighth of the experts lose their tokens."""
    onset = around(0.25 * shape.steps, rng)
    left = rng.uniform(0.01, 0.025)

    def level(step: int) -> float:
        return max(left, 0.6 * math.exp(-max(0, step - onset) / 40))

    run = thin(shape, rng, level)
    begins = next((n for n in range(onset, shape.steps) if level(n) < 0.1), shape.steps - 1)
    (router,) = run.truth.expected[0].routers
    found = Expected(rule="STARVED", routers=(router,), onset=begins, tolerance=75)
    truth = Truth(expected=(found,), allowed={"DEAD": "warn"}, profile="finetune")
    return replace(run, truth=truth)


def thin(shape: Shape, rng: random.Random, level: ByStep) -> Run:
    """A fine-tuning of one router with experts of this level."""
    (sick,) = some_routers(shape, 1 / shape.routers, rng)
    number = max(1, math.ceil(shape.num_experts / 8))
    few = {sick: rng.sample(range(shape.num_experts), number)}
    course = Course(
        popularity=levelled(constant(shape, 0.25, rng), few, level),
        concentration=lambda step: 120.0,
    )
    found = Expected(rule="STARVED", routers=(sick,))
    profile = "finetune"
    return run_along(course, shape, rng, found, profile=profile, header={"profile": profile})
