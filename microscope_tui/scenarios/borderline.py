"""Runs close to a limit: ordinary ones near it, and measurement faults that look like router
faults.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from microscope_tui.scenarios.course import Course, steps
from microscope_tui.scenarios.healthy import settled
from microscope_tui.scenarios.popularity import Popularity, blended, constant, uneven
from microscope_tui.scenarios.run import Record, Run, around, some_routers
from microscope_tui.scenarios.shape import Shape
from microscope_tui.scenarios.synthetic import whole
from microscope_tui.scenarios.truth import Expected, Truth

Level = Callable[[int], float]


def levelled(base: Popularity, chosen: Mapping[int, Sequence[int]], level: Level) -> Popularity:
    """``base`` where the chosen experts of some routers have ``level(step)`` of the mean share."""

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


def impossible_counts(shape: Shape, rng: random.Random) -> Run:
    """All k choices are counted on the first one: an expert has more pairs than there are tokens.

    Every row still sums to tokens × k. Half of the logs hold the summaries of such counts alone.
    """
    sick = some_routers(shape, 0.3, rng)
    onset = around(0.3 * shape.steps, rng)
    hot = {router: rng.randrange(shape.num_experts) for router in sick}
    share = rng.uniform(0.8, 0.98)
    summaries_only = rng.random() < 0.5

    def meter(router: int, step: int, counts: list[int]) -> list[int]:
        if router not in hot or step < onset:
            return counts
        others = sum(counts) - counts[hot[router]]
        scale = (1 - share) / max(1, others)
        wanted = [scale * n for n in counts]
        wanted[hot[router]] = share
        return whole(wanted, sum(counts))

    course = Course(popularity=settled(shape, rng), meter=meter)
    found = Expected(rule="METER", routers=sick, onset=onset, severity="error")
    return Run(
        shape=shape,
        truth=Truth(expected=(found,)),
        header={"source": {"counts": "none"}} if summaries_only else {},
        edit=_without_counts if summaries_only else None,
        steps=steps(shape, rng, course),
    )


def _without_counts(records: Iterator[Record]) -> Iterator[Record]:
    for record in records:
        record.pop("tokens_per_expert", None)
        yield record


def fine_grained(shape: Shape, rng: random.Random) -> Run:
    """Many small experts specialise: the busiest one rises to five to ten times its share.

    With few experts it stays at twice its share: more would be half a collapse.
    """
    begin = around(0.15 * shape.steps, rng)
    length = max(1, round(rng.uniform(0.2, 0.5) * shape.steps))
    even, parted = uneven(shape, 0.1, rng), uneven(shape, 0.5, rng)
    for row in parted:
        most = 0.85 * shape.num_experts / shape.top_k if shape.num_experts >= 64 else 2.0
        for place, expert in enumerate(rng.sample(range(len(row)), max(1, len(row) // 64))):
            load = min(most, rng.uniform(5, 10) / (1 + place / 2))
            row[expert] = math.log(load * (shape.num_experts - 1) / (shape.num_experts - load))
    course = Course(
        popularity=blended(even, parted, lambda step: min(1.0, max(0.0, (step - begin) / length))),
        concentration=lambda step: 120.0,
    )
    return Run(shape=shape, truth=Truth(hard_negative=True), steps=steps(shape, rng, course))


def hovering(shape: Shape, rng: random.Random) -> Run:
    """A fine-tuning in which an eighth of the experts stays about a tenth of its share."""
    waves = [(rng.uniform(60, 400), rng.uniform(0, 2 * math.pi)) for _ in range(3)]

    def level(step: int) -> float:
        wander = sum(math.sin(2 * math.pi * step / length + phase) for length, phase in waves)
        return 0.1 + 0.04 * min(1.0, step / 100) * wander / 2 + 0.03 * math.exp(-step / 80)

    run = _thin(shape, rng, level)
    return replace(run, truth=Truth(profile="finetune", hard_negative=True))


def starving(shape: Shape, rng: random.Random) -> Run:
    """A fine-tuning in which an eighth of the experts loses nearly all of its tokens."""
    onset, left = around(0.25 * shape.steps, rng), rng.uniform(0.01, 0.025)

    def level(step: int) -> float:
        return max(left, 0.6 * math.exp(-max(0, step - onset) / 40))

    run = _thin(shape, rng, level)
    begins = next((n for n in range(onset, shape.steps) if level(n) < 0.1), shape.steps - 1)
    (router,) = run.truth.expected[0].routers
    found = Expected(rule="STARVED", routers=(router,), onset=begins, tolerance=75)
    truth = Truth(expected=(found,), allowed={"DEAD": "warn"}, profile="finetune")
    return replace(run, truth=truth)


def _thin(shape: Shape, rng: random.Random, level: Level) -> Run:
    """A fine-tuning of one router with experts of this level; its truth holds the router."""
    (sick,) = some_routers(shape, 1 / shape.routers, rng)
    number = max(1, math.ceil(shape.num_experts / 8))
    few = {sick: rng.sample(range(shape.num_experts), number)}
    course = Course(
        popularity=levelled(constant(shape, 0.25, rng), few, level),
        concentration=lambda step: 120.0,
    )
    header: Record = {"profile": "finetune"}
    return Run(
        shape=shape,
        truth=Truth(expected=(Expected(rule="STARVED", routers=(sick,)),), profile="finetune"),
        header=header,
        steps=steps(shape, rng, course),
    )
