"""The records of a run log, decoded.

``None`` is *no value* everywhere: not configured, not measured, or not measured for this router.
NaN is a value: a measurement that was not a number.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

FORMAT_VERSION = 1
LOG_NAME = "metrics.jsonl"

Values = list[float | None]
T = TypeVar("T")


class BadLine(ValueError):
    """The line is not a record; the message says why."""


class UnknownFormat(ValueError):
    """The run log has an unsupported format version."""


class RouterSummary(msgspec.Struct, gc=False):
    """Per-router summaries of one step; each list has one entry per router, in forward order."""

    entropy: Values | None = None
    mean_entropy: Values | None = None
    effective_experts: Values | None = None
    max_load: Values | None = None
    dead_experts: Values | None = None
    starved_experts: Values | None = None
    drop_rate: Values | None = None
    z_loss: Values | None = None
    max_logit: Values | None = None
    grad_norm: Values | None = None
    selected_mass: Values | None = None
    margin: Values | None = None
    tokens: Values | None = None
    unrouted: Values | None = None
    """Pairs that chose a skip or identity slot instead of a real expert."""
    disagreement: Values | None = None
    """Share of the choices that another engine or precision makes differently."""


class StepRecord(msgspec.Struct, gc=False):
    """One optimizer step, without its matrices (see ``decode.decode_matrices``)."""

    step: int
    time: float | None = None
    loss: float | None = None
    losses: dict[str, float | None] | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens: float | None = None
    tokens_per_s: float | None = None
    step_time_s: float | None = None
    memory_bytes: float | None = None
    router: RouterSummary = msgspec.field(default_factory=RouterSummary)


def seconds_between(before: StepRecord | None, after: StepRecord) -> float | None:
    """How long a record takes to come: the longer of the step's own time and of their distance.

    Where not every step is logged the distance is the longer one; ``None`` where nothing tells.
    """
    times = [after.step_time_s]
    if before is not None and before.time is not None and after.time is not None:
        times.append(after.time - before.time)
    known = [time for time in times if time is not None and 0.0 <= time < math.inf]
    return max(known, default=None)


@dataclass(frozen=True, slots=True)
class Matrices:
    """The matrices of one step: one row per router, ``None`` where a row is absent or unusable."""

    tokens_per_expert: list[list[int] | None]
    expert_bias: list[list[float] | None]


@dataclass(frozen=True, slots=True)
class RouterInfo:
    """One router of the model: its shown name, true depth, experts and choices per token."""

    name: str
    depth: int
    num_experts: int
    """0 if unknown."""
    top_k: int
    """0 if unknown: then there is no collapse index."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The header of a run: what was trained and how its routers are balanced."""

    run: str
    routers: tuple[RouterInfo, ...]
    time: float | None = None
    planned_steps: int | None = None
    resumed_at_step: int | None = None
    profile: str = "pretrain"
    model_name: str = ""
    dtype: str = ""
    """Data type of the computation, if configured: ``bf16``, ``fp32`` …"""
    sequence_length: int | None = None
    """Tokens of a sequence, if configured."""
    capacity_factor: float | None = None
    score_function: str = ""
    norm_top_k: bool | None = None
    balance: dict[str, Any] = field(default_factory=dict)
    counts: str = "exact"
    expert_parallel_size: int = 1
    inferred: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHeader:
    """A run record as its writer says it; what it does not say is left out, ``None`` is null."""

    run: str
    time: float | UnsetType | None = UNSET
    planned_steps: int | UnsetType | None = UNSET
    resumed_at_step: int | UnsetType | None = UNSET
    profile: str = "pretrain"
    model: Mapping[str, Any]
    """``layers``, ``layer_names``, ``num_experts``, ``top_k`` …"""
    balance: Mapping[str, Any] | UnsetType = UNSET
    source: Mapping[str, Any] | UnsetType = UNSET
    """``writer``, ``counts``, ``note``."""
    world_size: int | UnsetType = UNSET
    expert_parallel_size: int | UnsetType = UNSET
    config: Mapping[str, Any] | UnsetType = UNSET
    versions: Mapping[str, Any] | UnsetType = UNSET

    def to_json(self) -> dict[str, Any]:
        """The record, its keys in the order of the format."""
        said = {key.name: getattr(self, key.name) for key in fields(self)}
        head = {"kind": "run", "format_version": FORMAT_VERSION}
        return head | {key: value for key, value in said.items() if value is not UNSET}


def one_or_each(values: Sequence[T]) -> T | list[T]:
    """A setting of the routers for a header: one value where they share it, else one each."""
    return values[0] if len(set(values)) == 1 else list(values)


@dataclass(frozen=True, slots=True)
class EventRecord:
    """An event at a step: ``eval``, ``checkpoint``, ``end`` …"""

    event: str
    step: int | None = None
    time: float | None = None
    reason: str = ""
    values: dict[str, float] = field(default_factory=dict)


Record = RunRecord | StepRecord | EventRecord
