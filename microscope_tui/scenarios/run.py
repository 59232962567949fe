"""A synthetic run before it is written: its size, its truth, its header and its steps."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]
Values = list[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The size of a synthetic model and of its run; every layer has a router."""

    routers: int = 10
    num_experts: int = 8
    top_k: int = 2
    tokens: int = 4096
    """Per step."""
    steps: int = 600
    capacity_factor: float | None = None
    """Of the expert capacity, as a multiple of the fair share; ``None``: nothing is dropped."""

    @property
    def fair_count(self) -> float:
        """Tokens that every expert gets in a step when the load is even."""
        return self.tokens * self.top_k / self.num_experts


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a trainer logs in one step, with the summaries of ``router``."""

    step: int
    loss: float
    """In nats."""
    tokens: int
    tokens_per_expert: list[list[int] | None]
    """By router, then by expert."""
    expert_bias: list[list[float]]
    """By router, then by expert; empty rows without a balancing bias."""
    router: dict[str, Values]
    """Name of a summary → one value per router."""
    learning_rate: float
    grad_norm: float
    losses: dict[str, float] = field(default_factory=dict)
    """Auxiliary losses by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """A finding that a correct diagnosis reports."""

    rule: str
    routers: tuple[int, ...] = ()
    """Empty for the whole run."""
    onset: int = 1
    """Step of the fault; a finding may be dated up to ``tolerance`` steps from it."""
    until: int | None = None
    """Step at which the fault is over; ``None`` if it lasts."""
    severity: str = "warn"
    """At least: info, warn, crit, error."""
    experts: tuple[int, ...] = ()
    """Exact ids, if known; the same in every router."""
    tolerance: int = 25
    """In steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """All faults of a run, and which other findings are not false alarms."""

    expected: tuple[Expected, ...] = ()
    allowed: Mapping[str, str] = field(default_factory=dict)
    """Rule → highest severity; info is never a false alarm."""
    profile: str = "pretrain"
    """By which the run is to be judged."""
    hard_negative: bool = False
    """Looks faulty but is healthy."""
    cause: str = ""
    """What the first line of a correct report names, if anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A synthetic run before it is written."""

    shape: Shape
    """A variant of the requested shape, if the scenario has one."""
    truth: Truth
    steps: Iterator[Step]
    header: Record = field(default_factory=dict)
    """Changes of the run record; ``model`` and ``source`` are merged, other keys replaced."""
    edit: Callable[[Iterator[Record]], Iterator[Record]] | None = None
    """Changes the records before they are written, such as leaving some out; by default none."""
    torn: bool = False
    """It ends in the middle of its last step."""


def around(step: float, rng: random.Random) -> int:
    """``step``, moved by up to a tenth at random; at least 1."""
    return max(1, round(step * rng.uniform(0.9, 1.1)))


def some_routers(shape: Shape, share: float, rng: random.Random) -> tuple[int, ...]:
    """About this share of the routers, at least one, in forward order."""
    number = max(1, round(shape.routers * share))
    return tuple(sorted(rng.sample(range(shape.routers), number)))


def hot_experts(
    shape: Shape, routers: tuple[int, ...], rng: random.Random
) -> dict[int, tuple[int, ...]]:
    """k experts for each, drawn separately."""
    ids = range(shape.num_experts)
    return {router: tuple(sorted(rng.sample(ids, shape.top_k))) for router in routers}
