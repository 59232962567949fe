"""One step of several parts as one record.

Counts and tokens are summed, what follows from the counts is derived again, and means over tokens
(losses, entropies …) are weighted by the tokens of the parts. A gradient norm is the largest: it is
the same in all parts if gradients are averaged, and else that of their sum is unknown. The bias is
that of the first part. ``mean_entropy`` becomes a lower bound; means of experts are not kept.
"""

import math
from collections.abc import Sequence
from typing import Any

from microscope_tui import measures
from microscope_tui.runlog import StepEntry, rounded
from microscope_tui.sources.reader import Record
from microscope_tui.sources.records import step_record

_SUMMED = ("tokens", "tokens_per_s", "router.tokens", "router.unrouted")
_LARGEST = ("learning_rate", "grad_norm", "step_time_s", "memory_bytes", "router.grad_norm")
_LARGEST += ("router.max_logit", "router.layer_changed")
_LEAST = ("router.looked_tensors", "router.still_tensors", "router.unchanged_tensors")
_OWN = {"kind", "router", "losses", *(f"router.{name}" for name in measures.DERIVED)}
_MOST_TOKENS = 2.0**53
_Row = Sequence[float | None]


def summed(step: int, entries: Sequence[StepEntry]) -> Record:
    """The record of ``step`` from that of every part."""
    lines = [entry.numbers() for entry in entries]
    of_step: list[_Row] = [[entry.record.tokens] for entry in entries]
    of_routers = [_tokens(entry) for entry in entries]
    found: dict[str, dict[str, Any]] = {"": {}, "router": {}, "losses": {}}
    for name in dict.fromkeys(name for line in lines for name in line if name not in _OWN):
        group, _, inner = name.partition(".")
        weights = of_routers if group == "router" else of_step
        rows = [_row(line.get(name), len(weights[0])) for line in lines]
        if name == "router.tokens":
            rows = weights
        columns = zip(zip(*rows, strict=True), zip(*weights, strict=True), strict=True)
        values = [_one(name, *column) for column in columns]
        if group == "router":
            found[group][inner] = values
        elif group in found and inner:
            found[group][inner] = values[0]
        else:
            found[""][name] = values[0]
    matrices = [entry.matrices() for entry in entries]
    rows_of = zip(*(one.tokens_per_expert for one in matrices), strict=True)
    biases = matrices[0].expert_bias
    times = [entry.record.time for entry in entries if entry.record.time is not None]
    return step_record(
        step,
        [_added(rows) for rows in rows_of],
        expert_bias=biases if any(biases) else None,
        router=found["router"],
        time=max(times, default=None),
        losses=found["losses"],
        **found[""],
    )


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
    if name in _SUMMED:
        found = sum(numbers)
    elif any(map(math.isnan, numbers)):
        return math.nan
    elif name in _LARGEST + _LEAST:
        found = max(numbers) if name in _LARGEST else min(numbers)
    else:
        tokens = [
            w for v, w in zip(values, weights, strict=True) if v is not None and w is not None
        ]
        if len(tokens) < len(numbers) or not sum(tokens):
            tokens = [1.0] * len(numbers)
        shares = (number / sum(tokens) for number in tokens)
        return rounded(sum(map(float.__mul__, numbers, shares)), 7)
    return int(found) if abs(found) < _MOST_TOKENS and found == int(found) else found
