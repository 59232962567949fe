"""The scenarios of ``demo`` by name: a healthy run, and at least one for nearly every rule."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from microscope_tui.scenarios import collapsing, control, healthy
from microscope_tui.scenarios.run import Run, Shape

_ENOUGH = 20  # tokens per expert and step that distinguish a fading expert from chance
_STEADY = 100  # tokens per expert and step at which no expert of a skewed rank is conspicuous


def any_shape(shape: Shape) -> bool:
    """At least twice as many experts as each token chooses."""
    return shape.num_experts >= 2 * shape.top_k


def several_choices(shape: Shape) -> bool:
    """The same, and more than one choice: one expert can be chosen always."""
    return any_shape(shape) and shape.top_k > 1


def can_lose_experts(shape: Shape) -> bool:
    """Enough tokens that chance leaves no expert out."""
    return any_shape(shape) and shape.num_experts >= 8 and shape.fair_count >= _ENOUGH


def _can_starve(shape: Shape) -> bool:
    return any_shape(shape) and shape.num_experts >= 8 and shape.fair_count >= _STEADY


def _fills_ranks(shape: Shape) -> bool:
    return any_shape(shape) and bool(control.ranks_of(shape)) and shape.fair_count >= _STEADY


@dataclass(frozen=True, slots=True)
class Scenario:
    """A kind of run with known ground truth."""

    name: str
    """As the command ``demo`` takes it."""
    build: Callable[[Shape, random.Random], Run]
    """Makes one run of it; the random numbers decide where and when the faults begin."""
    fits: Callable[[Shape], bool] = any_shape
    """Whether the faults can be found in a model of this shape."""
    steps: int = 1500
    """By default."""


_ALL = (
    Scenario("healthy", healthy.healthy),
    Scenario("shock", healthy.shock),
    Scenario("hot-expert", healthy.hot_expert, several_choices),
    Scenario("collapse", collapsing.collapse, steps=600),
    Scenario("slow-collapse", collapsing.slow_collapse),
    Scenario("dead-experts", collapsing.dead_experts, can_lose_experts),
    Scenario("starving-finetune", collapsing.starving, _can_starve),
    Scenario("divergence", collapsing.divergence),
    Scenario("bias-limit-cycle", control.bias_limit_cycle),
    Scenario("bias-runaway", control.bias_runaway),
    Scenario("overflow", control.overflow),
    Scenario("dead-gradient", control.dead_gradient),
    Scenario("rank-skew", control.rank_skew, _fills_ranks),
    Scenario("double-counting", control.double_counting),
    Scenario("lint-no-balance", control.no_balance),
)

SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
