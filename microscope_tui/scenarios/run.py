"""A synthetic run before it is written: its truth, its header and its steps."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from microscope_tui.scenarios.shape import Shape, Step
from microscope_tui.scenarios.truth import Truth

Record = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a scenario builds."""

    shape: Shape
    """The requested shape, or the scenario's variant of it."""
    truth: Truth
    steps: Iterator[Step]
    header: Record = field(default_factory=dict)
    """Changes of the run record; ``model`` and ``source`` are merged, other keys replaced."""
    edit: Callable[[Iterator[Record]], Iterator[Record]] | None = None
    """Transforms the records before they are written."""
    torn: bool = False
    """The log ends in the middle of its last step."""


def around(step: float, rng: random.Random) -> int:
    """A step number at most a tenth away from ``step``."""
    return max(1, round(step * rng.uniform(0.9, 1.1)))


def some_routers(shape: Shape, share: float, rng: random.Random) -> tuple[int, ...]:
    """About this share of the routers, at least one, in forward order."""
    number = max(1, round(shape.routers * share))
    return tuple(sorted(rng.sample(range(shape.routers), number)))


def hot_experts(
    shape: Shape, routers: tuple[int, ...], rng: random.Random
) -> dict[int, tuple[int, ...]]:
    """k experts for each of the routers, drawn for each alone."""
    ids = range(shape.num_experts)
    return {router: tuple(sorted(rng.sample(ids, shape.top_k))) for router in routers}
