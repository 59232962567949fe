"""One step of several parts as one record.

Counts and tokens are summed, what follows from the counts is derived again, and means over tokens
(losses, entropies …) are weighted by the tokens of the parts. A gradient norm is the largest: it is
the same in all parts if gradients are averaged, and else that of their sum is unknown. The bias is
that of the first part. ``mean_entropy`` becomes a lower bound; means of experts are not kept.
"""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

from microscope_tui import measures
from microscope_tui.runlog import StepEntry, rounded
from microscope_tui.sources.reader import Record
from microscope_tui.sources.records import step_record

_SUMMED = ("tokens", "tokens_per_s", "router.tokens", "router.unrouted")
_LEAST = ("router.looked_tensors", "router.still_tensors", "router.unchanged_tensors")
_LARGEST = (
    *("learning_rate", "grad_norm", "step_time_s", "memory_bytes"),
    *("router.grad_norm", "router.max_logit", "router.layer_changed"),
)
_OWN = {"kind", "step", "time", "router", "losses", "expert_bias", "tokens_per_expert"}
_OWN |= {f"router.{name}" for name in measures.DERIVED}
_MOST = 2.0**53
_Row = Sequence[float | None]


def summed(step: int, entries: Sequence[StepEntry]) -> Record:
    """The record of ``step`` from that of every part."""
    matrices = [entry.matrices() for entry in entries]
    rows_of = zip(*(one.tokens_per_expert for one in matrices), strict=True)
    biases = matrices[0].expert_bias
    found = _numbers(entries)
    return step_record(
        step,
        [_added(rows) for rows in rows_of],
        expert_bias=biases if any(biases) else None,
        router=found["router"],
        time=max(entry.record.time or 0.0 for entry in entries) or None,
        losses=found["losses"],
        **found[""],
    )


def _numbers(entries: Sequence[StepEntry]) -> dict[str, dict[str, Any]]:
    """Those of the step, of ``router`` and of ``losses``."""
    lines = [entry.numbers() for entry in entries]
    of_step: list[_Row] = [[entry.record.tokens] for entry in entries]
    of_routers = [_tokens(entry) for entry in entries]
    found: dict[str, dict[str, Any]] = {"": {}, "router": {}, "losses": {}}
    for name in dict.fromkeys(chain.from_iterable(lines)):
        if name in _OWN:
            continue
        group, _, inner = name.partition(".")
        if group not in ("router", "losses") or not inner:
            group, inner = "", name
        weights = of_routers if group == "router" else of_step
        rows = [_row(line.get(name), len(weights[0])) for line in lines]
        if name == "router.tokens":
            rows = weights
        columns = zip(zip(*rows, strict=True), zip(*weights, strict=True), strict=True)
        values = [_one(name, *column) for column in columns]
        found[group][inner] = values if group == "router" else values[0]
    return found


def _tokens(entry: StepEntry) -> _Row:
    """Of every router."""
    own = entry.record.router.tokens or [None] * entry.routers
    return [entry.record.tokens if number is None else number for number in own]


def _row(value: Any, size: int) -> _Row:
    row = value if isinstance(value, list) else [value]
    return row if len(row) == size else [None] * size


def _added(rows: Sequence[list[int] | None]) -> list[int] | None:
    """``None`` if the row of a part is unknown, or of another length."""
    known = [row for row in rows if row is not None]
    if len(known) < len(rows) or len(set(map(len, known))) > 1:
        return None
    return list(map(sum, zip(*known, strict=True)))


def _one(name: str, values: _Row, weights: _Row) -> float | None:
    numbers = [value for value in values if value is not None]
    partly = len(numbers) < len(values) and name != "router.unrouted"
    if not numbers or (partly and name in _SUMMED + _LEAST):
        return None
    if any(map(math.isnan, numbers)):
        return math.nan
    if name in _SUMMED:
        return _whole(sum(numbers))
    if name in _LARGEST:
        return _whole(max(numbers))
    return _whole(min(numbers)) if name in _LEAST else _mean(values, weights)


def _whole(number: float) -> float:
    return int(number) if abs(number) < _MOST and number == int(number) else number


def _mean(values: _Row, weights: _Row) -> float | None:
    pairs = [(v, w or 0.0) for v, w in zip(values, weights, strict=True) if v is not None]
    total = sum(weight for _, weight in pairs)
    if not total:
        pairs = [(value, 1.0) for value, _ in pairs]
    return rounded(sum(value * (weight / (total or len(pairs))) for value, weight in pairs), 7)
