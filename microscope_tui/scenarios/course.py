"""The course of a run: from the popularity of experts to the records of a trainer."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from microscope_tui import measures
from microscope_tui.scenarios.popularity import Popularity, draw_counts, jittered
from microscope_tui.scenarios.run import Expected, Run, Shape, Step, Truth, Values

BIAS_UPDATE_RATE = 0.001
WARMUP_STEPS = 100
_SPIKE_CHANCE = 0.006  # a harmless gradient spike, as healthy runs have them
_BIAS_SPREAD = 0.09  # of biases that even out the load

ByStep = Callable[[int], float]
ByRouter = Callable[[int, int], float]
"""``value(router, step)``."""
Meter = Callable[[int, int, list[int]], list[int]]
"""``logged(router, step, counts)``: the counts as logged."""


def sharpening(router: int, step: int) -> float:
    """Token entropy ÷ mean entropy of a healthy router."""
    return 0.98 - 0.35 * min(1.0, step / 600)


def falling_loss(shape: Shape) -> ByStep:
    """In nats: from 4.4 at the start down to about 1.4."""
    return lambda step: 1.4 + 3.0 * math.exp(-4 * step / shape.steps)


def cosine_rate(shape: Shape) -> ByStep:
    """Linear warm-up, then one cosine to zero."""

    def rate(step: int) -> float:
        turn = math.pi * step / shape.steps
        return 1e-3 * min(1.0, step / WARMUP_STEPS) * 0.5 * (1 + math.cos(turn))

    return rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What drives a run; the defaults are those of a healthy one."""

    popularity: Popularity
    """``popularity(router, step)``: a weight per expert, before the jitter."""
    concentration: ByStep = lambda step: 300.0
    """Of popularity: its jitter has variance 1 ÷ this."""
    token_entropy: ByRouter = sharpening
    """Token entropy ÷ entropy of the mean probability."""
    softness: ByRouter = lambda router, step: 0.1
    """How far the mean probability is from the load (0) to uniform (1)."""
    z_scale: ByRouter = lambda router, step: 1.0
    """Factor on the usual z-loss; the largest logit grows with its root."""
    router_grad: float = 0.02
    """Usual gradient norm of a router."""
    grad_scale: ByStep = lambda step: 1.0
    """Factor on the usual gradient norm of the model."""
    loss: ByStep | None = None
    """By default ``falling_loss``."""
    learning_rate: ByStep | None = None
    """By default ``cosine_rate``."""
    losses: Callable[[Sequence[Sequence[int]]], dict[str, float]] | None = None
    """Auxiliary losses of a step from the counts of all routers; by default none."""
    bias_update_rate: float | None = BIAS_UPDATE_RATE
    """``None``: no balancing bias."""
    unheeded: Callable[[int, int], bool] = lambda router, step: False
    """Whether its bias has no effect on the load."""
    meter: Meter | None = None
    """What is logged instead of the true counts; by default these."""


def steps(
    shape: Shape, rng: random.Random, course: Course, first: int = 1, last: int | None = None
) -> Iterator[Step]:
    """The steps from ``first`` to ``last`` (by default that of the shape), drawn one at a time."""
    loss = course.loss or falling_loss(shape)
    rate = course.learning_rate or cosine_rate(shape)
    biases = _Biases(shape, course, rng)
    signals = _Signals(shape, course, rng)
    for step in range(first, (last or shape.steps) + 1):
        concentration = course.concentration(step)
        counts = []
        for router in range(shape.routers):
            weights = jittered(course.popularity(router, step), concentration, rng)
            row = draw_counts(weights, shape.tokens, shape.top_k, rng)
            if course.meter:
                row = course.meter(router, step, row)
            counts.append(row)
        spike = 3.0 if rng.random() < _SPIKE_CHANCE else 1.0
        yield Step(
            step=step,
            loss=loss(step) + rng.gauss(0, 0.02),
            tokens=shape.tokens,
            tokens_per_expert=cast(list[list[int] | None], counts),
            expert_bias=biases.values(),
            router=signals.of(step, counts),
            learning_rate=rate(step),
            grad_norm=0.9 * spike * course.grad_scale(step) * rng.lognormvariate(0, 0.15),
            losses=course.losses(counts) if course.losses else {},
        )
        biases.update(step, counts)


def run_along(
    course: Course, shape: Shape, rng: random.Random, *found: Expected, **truth: Any
) -> Run:
    """The run of a course with these faults."""
    header = truth.pop("header", {})
    known = Truth(expected=found, **truth)
    return Run(shape=shape, truth=known, header=header, steps=steps(shape, rng, course))


class _Biases:
    def __init__(self, shape: Shape, course: Course, rng: random.Random) -> None:
        self._rng, self._unheeded = rng, course.unheeded
        self._per_unit = 1 / course.bias_update_rate if course.bias_update_rate else None
        size = shape.num_experts if self._per_unit else 0
        self._rows = [[0] * size for _ in range(shape.routers)]
        # A bias that evens out the load moves to a goal and stays near it.
        spread = _BIAS_SPREAD * (self._per_unit or 0.0)
        self._goals = [[round(rng.gauss(0, spread)) for _ in row] for row in self._rows]

    def values(self) -> list[list[float]]:
        """Empty rows without balancing by a bias."""
        per_unit = self._per_unit
        if per_unit is None:
            return [[] for _ in self._rows]
        return [[updates / per_unit for updates in row] for row in self._rows]

    def update(self, step: int, counts: Sequence[Sequence[int]]) -> None:
        if self._per_unit is None:
            return
        rows, goals = self._rows, self._goals
        for router, row in enumerate(rows):
            if self._unheeded(router, step):
                load = counts[router]
                fair = sum(load) / len(load)
                rows[router] = [b + (n < fair) - (n > fair) for b, n in zip(row, load, strict=True)]
            else:
                aim = int(self._rng.random() * 5) - 2
                for expert, goal in enumerate(goals[router]):
                    row[expert] += 1 if row[expert] < goal + aim else -1


class _Signals:
    def __init__(self, shape: Shape, course: Course, rng: random.Random) -> None:
        self._shape, self._course, self._rng = shape, course, rng
        self._even = math.log(shape.num_experts)
        self._z = [self._even**2 * rng.uniform(0.9, 1.3) for _ in range(shape.routers)]
        self._drift = [rng.uniform(-0.15, 0.15) for _ in range(shape.routers)]

    def of(self, step: int, counts: list[list[int]]) -> dict[str, Values]:
        course, gauss, routers = self._course, self._rng.gauss, range(self._shape.routers)
        derived = measures.summarise(counts)
        means = [
            self._mean_entropy(effective, course.softness(router, step))
            for router, effective in enumerate(derived["effective_experts"])
        ]
        shares = [
            min(1.0, course.token_entropy(router, step) * (1 + gauss(0, 0.004)))
            for router in routers
        ]
        entropies = [mean * share for mean, share in zip(means, shares, strict=True)]
        scales = [course.z_scale(router, step) for router in routers]
        certain = [1 - entropy / self._even for entropy in entropies]
        base = self._shape.top_k / self._shape.num_experts
        columns: dict[str, list[float]] = {
            "entropy": entropies,
            "mean_entropy": means,
            "z_loss": [self._z_loss(r, step) * scales[r] for r in routers],
            "max_logit": [4.0 * math.sqrt(s) * (1 + gauss(0, 0.04)) for s in scales],
            "grad_norm": [course.router_grad * self._rng.lognormvariate(0, 0.15) for _ in routers],
            "selected_mass": [base + (1 - base) * math.sqrt(max(0.0, c)) for c in certain],
            "margin": [abs(0.1 * c + gauss(0.004, 0.001)) for c in certain],
        }
        if self._shape.capacity_factor is not None:
            columns["drop_rate"] = [self._drop_rate(row) for row in counts]
        return {**cast(dict[str, Values], columns), **derived}

    def _mean_entropy(self, effective: float | None, softness: float) -> float:
        load = math.log(effective) if effective else 0.0
        return max(0.0, load + softness * (self._even - load))

    def _z_loss(self, router: int, step: int) -> float:
        drift = 1 + self._drift[router] * min(1.0, step / 1000)
        return self._z[router] * drift * (1 + self._rng.gauss(0, 0.03))

    def _drop_rate(self, counts: Sequence[int]) -> float:
        capacity = math.ceil((self._shape.capacity_factor or 1.0) * self._shape.fair_count)
        return sum(n - capacity for n in counts if n > capacity) / max(1, sum(counts))
