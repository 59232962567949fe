"""A run whose bias update has the wrong sign: busy experts gain bias and become busier still."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from microscope_tui.scenarios.collapsing import BESIDE_COLLAPSE
from microscope_tui.scenarios.course import BIAS_UPDATE_RATE, Course, steps
from microscope_tui.scenarios.healthy import settled
from microscope_tui.scenarios.run import Run
from microscope_tui.scenarios.shape import Shape, Step
from microscope_tui.scenarios.truth import Expected, Truth

_SCORE_SPREAD = 0.05
"""Difference of two scores at which one expert is e times as popular as the other."""
_LARGEST = 12.0
"""Bound of the log-popularity."""


def bias_wrong_sign(shape: Shape, rng: random.Random) -> Run:
    """Push every router away from balance from the first step on."""
    base = settled(shape, rng)
    biases = [[0.0] * shape.num_experts for _ in range(shape.routers)]
    routed_with = [list(row) for row in biases]

    def popularity(router: int, step: int) -> Sequence[float]:
        pairs = zip(base(router, step), biases[router], strict=True)
        return [w * math.exp(min(_LARGEST, bias / _SCORE_SPREAD)) for w, bias in pairs]

    def update(router: int, step: int, counts: list[int]) -> list[int]:
        fair = sum(counts) / len(counts)
        routed_with[router] = biases[router]
        biases[router] = [
            bias + BIAS_UPDATE_RATE * ((n > fair) - (n < fair))
            for bias, n in zip(biases[router], counts, strict=True)
        ]
        return counts

    def logged() -> Iterator[Step]:
        course = Course(popularity=popularity, bias_update_rate=None, meter=update)
        for step in steps(shape, rng, course):
            rows = [[round(bias, 6) for bias in row] for row in routed_with]
            yield replace(step, expert_bias=rows)

    found = Expected(rule="LINT", tolerance=500)
    beside = BESIDE_COLLAPSE | {"COLLAPSE": "crit"}
    return Run(shape=shape, truth=Truth(expected=(found,), allowed=beside), steps=logged())
