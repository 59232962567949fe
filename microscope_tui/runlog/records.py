"""The records of a run log: every field with its type and range, for reader, writer and check.

``None`` is *no value* everywhere: not configured, not measured, or not measured for this router.
NaN is a value: a measurement that was not a number.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeAlias, TypeVar, get_type_hints

import msgspec
from msgspec import UNSET, UnsetType

FORMAT_VERSION = 1
LOG_NAME = "metrics.jsonl"
ROUTING_NAME = "routing.bin"
"""Beside the log of a probe: the experts of every token."""

Values = list[float | None]
T = TypeVar("T")


NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
MATRICES = ("mean_weight", "mean_output_norm", "expert_bias", "tokens_per_expert")
"""At the end of a line, in this order."""
MAX_ROUTERS = 4096
SLACK = 1e-3
"""Of what is derived from counts by another formula."""


class Number(msgspec.Struct, frozen=True):
    """What a number of the format may be."""

    what: str
    """In words; completes the sentence "expected …"."""
    low: float = -sys.float_info.max
    high: float = sys.float_info.max
    integer: bool = False
    non_finite: bool = False
    """A measurement that can fail: ``"NaN"`` and the infinities are values."""
    most: Callable[[int], float] | None = None
    """The highest value for a router of so many experts, with what rounding may add."""

    def fits(self, value: Any) -> bool:
        """Whether the value is a finite number that is allowed."""
        if type(value) is not int and (type(value) is not float or self.integer):
            return False
        return self.low <= value <= self.high  # NaN and the infinities are in no range

    def fits_all(self, values: list[Any]) -> bool:
        """Whether each of some values fits, at the speed of C."""
        kinds = set(map(type, values))
        if not self.integer:
            kinds.discard(float)
        # True, and all that is not a number, remain.
        return kinds <= {int} and bool(self.low <= min(values) and max(values) <= self.high)


class PerRouter(msgspec.Struct, frozen=True):
    """A list with one entry per router, which may be ``None``; if ``shared`` also one for all."""

    rule: "Rule"
    shared: bool = False


class PerExpert(msgspec.Struct, frozen=True):
    """A row of a matrix: a number for every expert."""

    rule: Number
    otherwise: str = "[]"
    """What is written where there is no row."""
    null: str = ""
    """Code of the problem that an entry is ``None``; empty where that is allowed."""


class Each(msgspec.Struct, frozen=True):
    """An object with free keys, which are shown if ``named``."""

    value: "Rule"
    noun: str = "value"
    named: bool = False


Rule: TypeAlias = (
    "Number | type[str] | type[dict[str, Any]] | type[bool] | tuple[str, ...]"
    " | PerRouter | PerExpert | Each | Mapping[str, Rule] | None"
)
"""What a field may be: a number, a text, any object, a truth value, one of some texts, an object
with these fields; ``None`` is anything, or what needs a check of its own."""


def _all_experts(experts: int) -> float:
    return experts * (1 + SLACK)


def _all_nats(experts: int) -> float:
    return math.log(experts) * 1.005 + 1e-6  # bf16 has eight bits


COUNT = Number("an integer of at least 0", 0, 2**62, integer=True)
POSITIVE = Number("an integer of at least 1", 1, 2**62, integer=True)
TOKENS = Number("an integer of at least 1", 1, 2**53, integer=True)
TIME = Number("Unix seconds (not milliseconds)", 0, 1e11)
AMOUNT = Number("a number of at least 0", 0)
MEASURED = Number("a number of at least 0", 0, non_finite=True)
ANY = Number("a number", non_finite=True)
NATS = Number("nats a token", non_finite=True)
_ZERO = -1e-6  # an entropy or a margin of zero, computed in fp32
ENTROPY = Number("nats, 0 to ln E", _ZERO, non_finite=True, most=_all_nats)
MARGIN = Number("a number of at least 0", _ZERO, non_finite=True)
EFFECTIVE = Number("a number from 1 to num_experts", 1 - SLACK, most=_all_experts)
LARGEST = Number("max ÷ mean of the counts, 1 to num_experts", 1 - SLACK, most=_all_experts)
EXPERTS = Number("an integer from 0 to num_experts", 0, 2**62, integer=True, most=_all_experts)
SHARE = Number("a share in [0, 1]", 0, 1)
MASS = Number("a share in [0, 1]", 0, 1 + SLACK, non_finite=True)

_EXPERTS = Number(POSITIVE.what, 0, POSITIVE.high, integer=True)  # 0 is unknown
MODEL: dict[str, Rule] = {
    "name": str,
    "layers": None,
    "layer_names": PerRouter(str),
    "score_function": PerRouter(str, shared=True),
    "num_experts": PerRouter(_EXPERTS, shared=True),
    "top_k": PerRouter(POSITIVE, shared=True),
    **dict.fromkeys(("num_shared_experts", "parameters", "active_parameters"), COUNT),
    "norm_top_k": bool,
    "capacity_factor": AMOUNT,
}
UPDATES = ("sign", "proportional", "quantile")
BALANCE: dict[str, Rule] = {
    **dict.fromkeys(("method", "force_collapse"), str),
    "update": UPDATES,
    **dict.fromkeys(("bias_update_rate", "seq_aux_weight", "aux_weight", "z_loss_weight"), AMOUNT),
    "trainer_aux_weight": AMOUNT,
    "names": Each(str, "name"),
}
PAIRS = ("routers", "experts", "attention", "embeddings")
"""``[trained, all]``, numbers of tensors."""
TRAINING: dict[str, Rule] = {
    **dict.fromkeys((*PAIRS, "missing_targets")),
    "expert_weights": SHARE,
    "adapters": Each(COUNT, "number"),
}
SOURCES = ("exact", "top1", "shares", "local_rank", "none")
SOURCE: dict[str, Rule] = {"writer": str, "note": str, "counts": SOURCES, "unconfirmed": str}
RUN: dict[str, Rule] = {
    **dict.fromkeys(("kind", "format_version", "model")),
    **dict.fromkeys(("run", "part"), str),
    "time": TIME,
    "planned_steps": POSITIVE,
    "resumed_at_step": COUNT,
    "profile": ("pretrain", "finetune", "eval"),
    "world_size": POSITIVE,
    "expert_parallel_size": POSITIVE,
    **dict.fromkeys(("config", "versions"), dict),
    "balance": BALANCE,
    "training": TRAINING,
    "source": SOURCE,
}
FRACTIONS = 'holds fractions: write shares × 1,000,000 and source.counts "shares"'
EVENT: dict[str, Rule] = {
    "kind": None,
    "step": COUNT,
    "time": TIME,
    "reason": str,
    "event": str,
    "values": Each(None, named=True),
}


def holds_fractions(row: Any) -> bool:
    """Whether a row of counts holds shares or means instead."""
    return isinstance(row, list) and any(type(n) is float and 0 < n % 1 < 1 for n in row)


class BadLine(ValueError):
    """The line is not a record; the message says why."""


class UnknownFormat(ValueError):
    """The run log has an unsupported format version."""


class RouterSummary(msgspec.Struct, gc=False):
    """Per-router summaries of one step; each list has one entry per router, in forward order."""

    entropy: Annotated[Values | None, ENTROPY] = None
    mean_entropy: Annotated[Values | None, ENTROPY] = None
    effective_experts: Annotated[Values | None, EFFECTIVE] = None
    max_load: Annotated[Values | None, LARGEST] = None
    dead_experts: Annotated[Values | None, EXPERTS] = None
    starved_experts: Annotated[Values | None, EXPERTS] = None
    drop_rate: Annotated[Values | None, SHARE] = None
    z_loss: Annotated[Values | None, MEASURED] = None
    max_logit: Annotated[Values | None, ANY] = None
    grad_norm: Annotated[Values | None, MEASURED] = None
    selected_mass: Annotated[Values | None, MASS] = None
    margin: Annotated[Values | None, MARGIN] = None
    tokens: Annotated[Values | None, COUNT] = None
    unrouted: Annotated[Values | None, COUNT] = None
    """Pairs that chose a skip or identity slot instead of a real expert."""
    disagreement: Annotated[Values | None, SHARE] = None
    """Share of the choices that another engine or precision makes differently."""
    looked_tensors: Annotated[Values | None, COUNT] = None
    """Trained tensors that should have a gradient in this step; the next two are of these."""
    still_tensors: Annotated[Values | None, COUNT] = None
    unchanged_tensors: Annotated[Values | None, COUNT] = None
    layer_changed: Annotated[Values | None, COUNT] = None
    """Whether the router or its attention did change."""


class StepRecord(msgspec.Struct, gc=False):
    """One optimizer step, without its matrices (see ``decode.decode_matrices``)."""

    step: Annotated[int, COUNT]
    time: Annotated[float | None, TIME] = None
    loss: Annotated[float | None, NATS] = None
    losses: dict[str, float | None] | None = None
    learning_rate: Annotated[float | None, AMOUNT] = None
    grad_norm: Annotated[float | None, MEASURED] = None
    tokens: Annotated[float | None, TOKENS] = None
    tokens_per_s: Annotated[float | None, AMOUNT] = None
    step_time_s: Annotated[float | None, AMOUNT] = None
    memory_bytes: Annotated[float | None, AMOUNT] = None
    router: RouterSummary = msgspec.field(default_factory=RouterSummary)


def numbers_of(record: type[StepRecord] | type[RouterSummary]) -> dict[str, Number]:
    """What the numbers of a record may be, by name; of a summary, each entry of the list."""
    hints = get_type_hints(record, include_extras=True)
    said = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {name: rules[0] for name, rules in said.items() if rules}


def seconds_between(before: StepRecord | None, after: StepRecord) -> float | None:
    """The step's own time or, if longer, their distance, where not every step is logged."""
    times = [after.step_time_s]
    if before is not None and before.time is not None and after.time is not None:
        times.append(after.time - before.time)
    known = [time for time in times if time is not None and 0.0 <= time < math.inf]
    return max(known, default=None)


class Matrices(msgspec.Struct, frozen=True):
    """One row per router, ``None`` where it is absent or unusable."""

    tokens_per_expert: list[list[int] | None]
    expert_bias: list[list[float] | None]
    problem: str = ""


class RouterInfo(msgspec.Struct, frozen=True):
    """One router of the model: its shown name, true depth, experts and choices per token."""

    name: str
    depth: int
    num_experts: int
    """0 if unknown."""
    top_k: int
    """0 if unknown: then there is no collapse index."""


def has_grown(before: Sequence[RouterInfo], now: Sequence[RouterInfo]) -> bool:
    """Whether these are the same routers, of which no fewer experts are known."""
    if len(before) != len(now):
        return False
    pairs = list(zip(before, now, strict=True))
    same = all((b.name, b.depth, b.top_k) == (n.name, n.depth, n.top_k) for b, n in pairs)
    return same and all(b.num_experts <= n.num_experts for b, n in pairs)


class RunRecord(msgspec.Struct, frozen=True):
    """The header of a run: what was trained and how its routers are balanced."""

    run: str
    routers: tuple[RouterInfo, ...]
    part: str = ""
    """Its name, if the log is one of several of this run."""
    time: float | None = None
    planned_steps: int | None = None
    resumed_at_step: int | None = None
    profile: str = "pretrain"
    model_name: str = ""
    dtype: str = ""
    """Of the computation: ``bf16``, ``fp32`` …"""
    sequence_length: int | None = None
    hidden_layers: int | None = None
    """Dense ones included."""
    capacity_factor: float | None = None
    score_function: str = ""
    norm_top_k: bool | None = None
    balance: dict[str, Any] = msgspec.field(default_factory=dict)
    training: dict[str, Any] = msgspec.field(default_factory=dict)
    """As far as known; see ``TRAINING``."""
    counts: str = "exact"
    unconfirmed: str = ""
    """``--map`` of keys that were taken for the loads of experts without asking."""
    expert_parallel_size: int = 1
    inferred: bool = False


class RunHeader(msgspec.Struct, frozen=True, kw_only=True):
    """A run record as its writer gives it. Unset keys are left out; ``None`` is written as null."""

    run: str
    part: str | UnsetType = UNSET
    time: float | UnsetType | None = UNSET
    planned_steps: int | UnsetType | None = UNSET
    resumed_at_step: int | UnsetType | None = UNSET
    profile: str = "pretrain"
    loss_kind: str | UnsetType = UNSET
    """``outputs`` (of the model) or ``given`` (by the training loop), if it may not be the
    next-token cross-entropy."""
    model: Mapping[str, Any]
    """``layers``, ``layer_names``, ``num_experts``, ``top_k`` …"""
    balance: Mapping[str, Any] | UnsetType = UNSET
    training: Mapping[str, Any] | UnsetType = UNSET
    source: Mapping[str, Any] | UnsetType = UNSET
    """``writer``, ``counts``, ``note``."""
    world_size: int | UnsetType = UNSET
    expert_parallel_size: int | UnsetType = UNSET
    config: Mapping[str, Any] | UnsetType = UNSET
    versions: Mapping[str, Any] | UnsetType = UNSET

    def to_json(self) -> dict[str, Any]:
        """The record, its keys in the order of the format."""
        said = {key: getattr(self, key) for key in self.__struct_fields__}
        head = {"kind": "run", "format_version": FORMAT_VERSION}
        return head | {key: value for key, value in said.items() if value is not UNSET}


def one_or_each(values: Sequence[T]) -> T | list[T]:
    """A setting of the routers: one value where they share it, else one each."""
    return values[0] if len(set(values)) == 1 else list(values)


class SourceCounts(msgspec.Struct, frozen=True):
    """Tokens per expert of held-out text, by source."""

    names: Sequence[str]
    counts: Sequence[Sequence[Sequence[int]]]
    """Source → router → expert."""
    noise: Sequence[float]
    """Per source: how far ``log2(share in it / share overall)`` goes by chance (99 %)."""


class EventRecord(msgspec.Struct, frozen=True):
    """An event at a step: ``eval``, ``checkpoint``, ``end`` …"""

    event: str
    step: int | None = None
    time: float | None = None
    reason: str = ""
    values: dict[str, float] = msgspec.field(default_factory=dict)
    slices: SourceCounts | None = None
    """Of an evaluation."""


Record = RunRecord | StepRecord | EventRecord
