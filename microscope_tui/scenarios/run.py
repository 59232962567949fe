"""A synthetic run before it is written: its size, its truth, its header and its steps."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]
Values = list[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The size of a synthetic run."""

    routers: int = 10
    num_experts: int = 8
    top_k: int = 2
    tokens: int = 4096
    steps: int = 600
    capacity_factor: float | None = None

    @property
    def fair_count(self) -> float:
        """Tokens that every expert gets in a step when the load is even."""
        return self.tokens * self.top_k / self.num_experts


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The data of one step, including the summaries of ``router``."""

    step: int
    loss: float
    tokens: int
    tokens_per_expert: list[list[int] | None]
    expert_bias: list[list[float]]
    router: dict[str, Values]
    learning_rate: float
    grad_norm: float
    losses: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """One fault of the run."""

    rule: str
    routers: tuple[int, ...] = ()
    """Router indices; empty for the whole run."""
    onset: int = 1
    """Step at which the fault begins."""
    until: int | None = None
    """Step at which it ends, if it does."""
    severity: str = "warn"
    """At least this: info, warn, crit, error."""
    experts: tuple[int, ...] = ()
    """Exact ids, where they are known; the same in every router of ``routers``."""
    tolerance: int = 25
    """Steps that a dated onset may be off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """All faults of a run, and which other findings are not false alarms."""

    expected: tuple[Expected, ...] = ()
    allowed: Mapping[str, str] = field(default_factory=dict)
    """Rule → highest severity that is not a false alarm; info never is."""
    profile: str = "pretrain"
    hard_negative: bool = False
    """Looks faulty but is healthy."""
    cause: str = ""
    """What the first line of a correct report names, in lower case; empty where none is known."""


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
    """k experts for each of the routers, drawn for each separately."""
    ids = range(shape.num_experts)
    return {router: tuple(sorted(rng.sample(ids, shape.top_k))) for router in routers}
