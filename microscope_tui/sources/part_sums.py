"""One step of several parts as one record.

What follows from the counts is derived from their sum. A gradient norm is the largest: it is the
same in all parts if gradients are averaged, else that of their sum is unknown. The bias is that of
the first part; ``mean_entropy`` becomes a lower bound; means of experts are not kept.
"""

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from microscope_tui import measures
from microscope_tui.runlog import StepEntry, rounded
from microscope_tui.sources.reader import Record
from microscope_tui.sources.records import step_record

_RULES: dict[str, Callable[[Sequence[float]], float]] = {
    **dict.fromkeys(("tokens", "tokens_per_s", "router.tokens", "router.unrouted"), sum),
    **dict.fromkeys(("grad_norm", "step_time_s", "memory_bytes"), max),
    **dict.fromkeys(("router.grad_norm", "router.max_logit", "router.layer_changed"), max),
    **dict.fromkeys(("router.looked_tensors", "router.still_tensors"), min),
    "router.unchanged_tensors": min,
}
"""All others are means over tokens."""
_Column = Sequence[float | None]


def summed(step: int, entries: Sequence[StepEntry]) -> Record:
    """The record of ``step`` for the whole run, from that of every part.

    Counts are added; another number has a rule by its name, or is the mean weighted by tokens.
    """
    lines = [entry.numbers() for entry in entries]
    tokens = [entry.record.tokens for entry in entries]
    numbers: dict[str, Any] = {}
    router: dict[str, Any] = {}
    losses: dict[str, Any] = {}
    for name in dict.fromkeys(chain.from_iterable(lines)):
        group, _, inner = name.partition(".")
        values: list[Any] = [line.get(name) for line in lines]
        if group == "router":
            columns = zip(*(_row(value, entries[0].routers) for value in values), strict=True)
            router[inner] = [_one(name, column, tokens) for column in columns]
        elif group == "losses":
            losses[inner] = _one(name, values, tokens)
        else:
            numbers[name] = _one(name, values, tokens)
    biases = entries[0].matrices().expert_bias
    return (
        {"kind": "step"}
        | numbers
        | step_record(
            step,
            list(map(_added, *(entry.matrices().tokens_per_expert for entry in entries))),
            expert_bias=biases if any(biases) else None,
            router={name: row for name, row in router.items() if name not in measures.DERIVED},
            time=entries[0].record.time,
            losses=losses or None,
        )
    )


def _row(value: Any, routers: int) -> _Column:
    return value if isinstance(value, list) and len(value) == routers else [None] * routers


def _added(*rows: list[int] | None) -> list[int] | None:
    """``None`` if the row of a part is unknown, or of another length."""
    known = [row for row in rows if row]
    if len(known) < len(rows) or len(set(map(len, known))) > 1:
        return None
    return list(map(sum, zip(*known, strict=True)))


def _one(name: str, values: _Column, weights: _Column) -> float | None:
    """By the rule of ``name``, which needs a number of every part; else the mean."""
    known = [value for value in values if value is not None]
    rule = _RULES.get(name)
    if not known or (rule and len(known) < len(values)):
        return None
    if any(map(math.isnan, known)):
        return math.nan
    if rule:
        number = rule(known)
        return int(number) if number.is_integer() else number
    pairs = [(v, w or 1e-300) for v, w in zip(values, weights, strict=True) if v is not None]
    total = sum(weight for _, weight in pairs)
    return rounded(sum(value * (weight / total) for value, weight in pairs), 7)
