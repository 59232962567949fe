"""Runs whose routers fall onto k experts, or lose some: starvation and divergence."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from microscope_tui.scenarios.course import (
    ByStep,
    Course,
    Meter,
    falling_loss,
    sharpening,
    steps,
)
from microscope_tui.scenarios.healthy import settled
from microscope_tui.scenarios.popularity import Popularity, first_collapsed, pulled, settling
from microscope_tui.scenarios.run import Run, around, hot_experts, some_routers
from microscope_tui.scenarios.shape import Shape
from microscope_tui.scenarios.synthetic import whole
from microscope_tui.scenarios.truth import Expected, Truth

BESIDE_COLLAPSE = {
    "ERODING": "warn",
    "DEAD": "crit",
    "STARVED": "warn",
    "OVERLOAD": "warn",
    "DROPS": "crit",
    "BIAS_RUNAWAY": "warn",
}
"""True of every collapsed router: its other experts get nothing, and no bias brings them back."""
SHARES_SUM = 1_000_000


def growing(onset: int, every: float, limit: float = 20.0) -> ByStep:
    """A log-weight that grows by 1 in ``every`` steps from ``onset`` on."""
    return lambda step: min(limit, max(0.0, (step - onset) / every))


def collapsing(
    popularity: Popularity, sick: Sequence[int], onset: int, *, confident: bool
) -> Course:
    """A course with routers that fall from ``onset`` on; their bias has no effect.

    Confident routers send every token where all go; the others keep most of their entropy.
    """

    def fallen(router: int, step: int) -> float:
        return min(1.0, max(0.0, (step - onset) / 100)) if router in sick else 0.0

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

    It begins with the pull, or where the router counts as collapsed: both are right to say.
    """
    slide = first_collapsed(popularity, sick, shape, start) - start
    return Expected(
        rule="COLLAPSE", routers=sick, onset=start, severity=severity, tolerance=slide + 25
    )


def collapse(shape: Shape, rng: random.Random) -> Run:
    """One layer falls onto k experts within 60 steps of one third of the run."""
    sick, onset = ((2 * shape.routers) // 3,), shape.steps // 3
    hot = hot_experts(shape, sick, rng)
    popularity = pulled(settling(shape, 0.08, rng), hot, growing(onset, 8, limit=9))
    course = collapsing(popularity, sick, onset, confident=True)
    found = fallen(popularity, sick, shape, onset)
    truth = Truth(expected=(found,), allowed=BESIDE_COLLAPSE)
    return Run(shape=shape, truth=truth, steps=steps(shape, rng, course))


def slow_collapse(shape: Shape, rng: random.Random) -> Run:
    """k experts of one router win a little every step, while the loss keeps falling."""
    return _slow(shape, rng)


def from_shares(shape: Shape, rng: random.Random) -> Run:
    """A slow collapse, logged as shares of the load only."""
    run = _slow(shape, rng, lambda router, step, counts: whole(counts, SHARES_SUM), "warn")
    return replace(run, header={"source": {"counts": "shares"}})


def _slow(
    shape: Shape, rng: random.Random, meter: Meter | None = None, severity: str = "crit"
) -> Run:
    sick = some_routers(shape, 1 / shape.routers, rng)
    onset = around(0.2 * shape.steps, rng)
    popularity = pulled(settled(shape, rng), hot_experts(shape, sick, rng), growing(onset, 60))
    course = replace(collapsing(popularity, sick, onset, confident=True), meter=meter)
    eroding = Expected(rule="ERODING", routers=sick, onset=onset, tolerance=150)
    found = fallen(popularity, sick, shape, onset, severity)
    truth = Truth(expected=(eroding, found), allowed=BESIDE_COLLAPSE)
    return Run(shape=shape, truth=truth, steps=steps(shape, rng, course))


def _sudden(shape: Shape, rng: random.Random, onset: int, share: float) -> Run:
    sick = some_routers(shape, share, rng)
    popularity = pulled(settled(shape, rng), hot_experts(shape, sick, rng), growing(onset, 4))
    course = collapsing(popularity, sick, onset, confident=False)
    found = fallen(popularity, sick, shape, onset)
    truth = Truth(expected=(found,), allowed=BESIDE_COLLAPSE)
    return Run(shape=shape, truth=truth, steps=steps(shape, rng, course))


def collapse_unconfident(shape: Shape, rng: random.Random) -> Run:
    """Half of the routers fall within some twenty steps; their token entropy reads healthy."""
    return _sudden(shape, rng, around(0.1 * shape.steps, rng) + 40, 0.5)


def early_collapse(shape: Shape, rng: random.Random) -> Run:
    """The same within the warm-up, where imbalance is normal but a total collapse is not."""
    return _sudden(shape, rng, around(5, rng), 0.3)


def from_top1(shape: Shape, rng: random.Random) -> Run:
    """An unconfident collapse, logged as the first choice of every token only."""
    run = collapse_unconfident(replace(shape, top_k=1), rng)
    (found,) = run.truth.expected
    truth = replace(run.truth, expected=(replace(found, severity="warn"),))
    return replace(run, truth=truth, header={"source": {"counts": "top1"}})


def dead_experts(shape: Shape, rng: random.Random) -> Run:
    """A sixteenth of the experts of one router fade away; the others hardly notice."""
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
    truth = Truth(expected=(found,), allowed={"STARVED": "warn", "BIAS_RUNAWAY": "warn"})
    return Run(shape=shape, truth=truth, steps=steps(shape, rng, course))


def divergence(shape: Shape, rng: random.Random) -> Run:
    """Gradients and router logits blow up, then the load of half of the routers falls."""
    sick = some_routers(shape, 0.5, rng)
    onset = around(0.587 * shape.steps, rng)
    logits, load = onset + 20, onset + 70
    learned = falling_loss(shape)
    popularity = pulled(settled(shape, rng), hot_experts(shape, sick, rng), growing(load, 20))

    def z_scale(router: int, step: int) -> float:
        if step < logits or router not in sick:
            return 1.0
        return math.exp(min(5.0, (step - logits) / 60))

    course = replace(
        collapsing(popularity, sick, load, confident=True),
        grad_scale=lambda step: math.exp(min(9.0, max(0.0, (step - onset) / 25))),
        z_scale=z_scale,
        loss=lambda step: learned(step) + min(4.0, max(0.0, (step - load) / 60)),
    )
    expected = (
        Expected(rule="GRADSPIKE", onset=onset, tolerance=75),
        Expected(rule="LOGITS", routers=sick, onset=logits, tolerance=90),
        fallen(popularity, sick, shape, load),
    )
    truth = Truth(expected=expected, allowed=BESIDE_COLLAPSE)
    return Run(shape=shape, truth=truth, steps=steps(shape, rng, course))


def lr_restarts(shape: Shape, rng: random.Random) -> Run:
    """The learning rate jumps up three times; a router recovers twice, but not again."""
    sick = some_routers(shape, 1 / shape.routers, rng)
    restarts = [round(share * shape.steps * rng.uniform(0.97, 1.03)) for share in (0.25, 0.5, 0.75)]
    last = restarts[-1]

    def pull(step: int) -> float:
        if step >= last:
            return min(9.0, (step - last) / 3)
        return max(_bump(step - restart) for restart in restarts[:-1])

    popularity = pulled(settled(shape, rng), hot_experts(shape, sick, rng), pull)
    course = replace(
        collapsing(popularity, sick, last, confident=True),
        learning_rate=_restarting(restarts, shape.steps),
    )
    shocks = (
        Expected(rule="SHOCK", routers=sick, onset=at, until=at + 30, severity="info")
        for at in restarts[:-1]
    )
    found = fallen(popularity, sick, shape, last)
    truth = Truth(expected=(*shocks, found), allowed=BESIDE_COLLAPSE)
    return Run(shape=shape, truth=truth, steps=steps(shape, rng, course))


def _bump(since: int) -> float:
    return 5 * math.exp(-(((since - 12) / 8) ** 2)) if 0 <= since < 40 else 0.0


def _restarting(restarts: Sequence[int], end: int) -> Callable[[int], float]:
    edges = [0, *restarts, end]

    def rate(step: int) -> float:
        start = max(edge for edge in edges[:-1] if edge < step)
        stop = min(edge for edge in edges if edge > start)
        turn = math.pi * (step - start) / (stop - start)
        return 1e-3 * min(1.0, step / 100) * (0.55 + 0.45 * math.cos(turn))

    return rate
