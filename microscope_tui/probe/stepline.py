"""One line of the log from what all ranks saw in a step."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from microscope_tui.probe.plain import plain
from microscope_tui.probe.stepsums import Layout, StepSums

_logger = logging.getLogger("moe_microscope.probe")
_OWN_KEYS = frozenset({
    "kind", "step", "time", "tokens", "router", "expert_bias", "tokens_per_expert", "losses",
    "mean_weight", "mean_output_norm", "incomplete", "loss",
})  # fmt: skip


def step_record(
    told: StepSums,
    layout: Layout,
    step: int,
    saliency: bool,
    losses: Mapping[str, Any] | None,
    scalars: Mapping[str, Any],
    timing: Mapping[str, float | None],
) -> dict[str, Any]:
    """The arguments of ``RunRecorder.record_step``."""
    tokens = max(told.tokens, default=0)
    unseen = [not n for n in told.tokens]
    if any(unseen) and not all(unseen):
        unseen = [
            none and not layout.sites[row.place].optional
            for none, row in zip(unseen, layout.rows, strict=True)
        ]
    counts = [None if none else row for none, row in zip(unseen, told.counts, strict=True)]
    record: dict[str, Any] = {"step": step, "tokens": tokens, "tokens_per_expert": counts}
    record["router"] = _summaries(told, layout, tokens)
    record["loss"] = _mean(told.extra["loss"], told.extra["losses"])
    record["losses"] = {**(losses or {})}
    aux = _mean(told.extra["aux"], told.extra["auxes"])
    if aux is not None:
        record["losses"].setdefault("aux", aux)
    if any(told.biases):
        record["expert_bias"] = told.biases
    if saliency:
        record["mean_weight"] = _per_pair(told.weights, told.counts)
        record["mean_output_norm"] = _per_pair(told.norms, told.counts)
    if (lacking := _incomplete(told, layout, unseen)) is not None:
        record["incomplete"] = lacking
    own = {name: value for name, value in scalars.items() if name not in _OWN_KEYS}
    return {**timing, **{name: _number(value) for name, value in own.items()}, **record}


def _summaries(told: StepSums, layout: Layout, tokens: int) -> dict[str, list[float | None]]:
    rows = range(len(layout.rows))

    def mean(name: str, row: int) -> float | None:
        return _mean(told.sums[row][name], told.sums[row]["scored"])

    kinds = [site.scores.kind if site.scores else None for site in layout.sites]
    kind = [kinds[row.place] for row in layout.rows]
    found: dict[str, list[float | None]] = {
        "entropy": [mean("entropy", i) for i in rows],
        "mean_entropy": list(told.mean_entropy),
        "z_loss": [None if kind[i] == "probabilities" else mean("z_loss", i) for i in rows],
        "max_logit": [
            told.max_logit[i] if told.sums[i]["scored"] and kind[i] != "probabilities" else None
            for i in rows
        ],
        "selected_mass": [mean("selected_mass", i) for i in rows],
        "margin": [_positive(mean("margin", i)) for i in rows],
        "grad_norm": [
            None if math.isnan(s or 0.0) else math.sqrt(s or 0) for s in told.grad_squares
        ],
    }
    if any(site.drops for site in layout.sites):
        pairs = [
            n * layout.top_k[row.place] for n, row in zip(told.tokens, layout.rows, strict=True)
        ]
        found["drop_rate"] = [
            _mean(told.sums[i]["dropped"], pairs[i])
            if layout.sites[layout.rows[i].place].drops
            else None
            for i in rows
        ]
    if any(told.unrouted):
        found["unrouted"] = list(told.unrouted)
    if any(n != tokens for n in told.tokens):
        found["tokens"] = list(told.tokens)
    return {name: row for name, row in found.items() if any(v is not None for v in row)}


def _positive(value: float | None) -> float | None:
    return None if value is None or value <= 0 else value


def _mean(total: float, number: float) -> float | None:
    return total / number if number else None


def _per_pair(sums: list[list[float]], counts: list[list[int]]) -> list[list[float | None]]:
    """Means over the pairs of every expert; ``[]`` for a router where they were not measured."""
    return [
        [_mean(total, n) for total, n in zip(row, pairs, strict=True)] if any(row) else []
        for row, pairs in zip(sums, counts, strict=True)
    ]


def _incomplete(told: StepSums, layout: Layout, unseen: list[bool]) -> str | None:
    """Why the line does not hold all of the step; ``None`` where it does."""
    if (failed := round(told.extra["failed"])) > 0:
        return f"{failed} ranks did not count"
    if not told.extra["passes"]:
        return "no forward pass was counted"
    if any(unseen):
        names = [row.name for none, row in zip(unseen, layout.rows, strict=True) if none]
        return f"not seen: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
    return None


def _number(value: Any) -> float | None:
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        _logger.warning("a value that is not a number is not logged: %.60r", value)
        return None
    return value
