"""One line of the log from what all ranks saw in a step."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from microscope_tui.probe.plain import plain
from microscope_tui.probe.stepsums import Layout, StepSums

_logger = logging.getLogger(__name__)
_OWN_KEYS = frozenset({
    "kind", "step", "time", "tokens", "router", "expert_bias", "tokens_per_expert", "losses",
    "mean_weight", "mean_output_norm", "incomplete", "loss",
})  # fmt: skip


def step_record(
    totals: StepSums,
    layout: Layout,
    step: int,
    saliency: bool,
    losses: Mapping[str, Any] | None,
    scalars: Mapping[str, Any],
    timing: Mapping[str, float | None],
) -> dict[str, Any]:
    """The arguments of ``RunRecorder.record_step``."""
    tokens = max(totals.tokens, default=0)
    unseen = [not n for n in totals.tokens]
    if any(unseen) and not all(unseen):
        unseen = [
            none and not layout.sites[row.place].optional
            for none, row in zip(unseen, layout.rows, strict=True)
        ]
    counts = [None if none else row for none, row in zip(unseen, totals.counts, strict=True)]
    record: dict[str, Any] = {"step": step, "tokens": tokens, "tokens_per_expert": counts}
    record["router"] = _summaries(totals, layout, tokens)
    record["loss"] = _mean(totals.extra["loss"], totals.extra["losses"])
    record["losses"] = {**(losses or {})}
    aux = _mean(totals.extra["aux"], totals.extra["auxes"])
    if aux is not None:
        record["losses"].setdefault("aux", aux)
    if any(totals.biases):
        record["expert_bias"] = totals.biases
    if saliency:
        record["mean_weight"] = _per_pair(totals.weights, totals.counts)
        record["mean_output_norm"] = _per_pair(totals.norms, totals.counts)
    if (lacking := _incomplete(totals, layout, unseen)) is not None:
        record["incomplete"] = lacking
    own = {name: value for name, value in scalars.items() if name not in _OWN_KEYS}
    return {**timing, **{name: _number(value) for name, value in own.items()}, **record}


def _summaries(totals: StepSums, layout: Layout, tokens: int) -> dict[str, list[float | None]]:
    rows = range(len(layout.rows))

    def mean(name: str, row: int) -> float | None:
        return _mean(totals.sums[row][name], totals.sums[row]["scored"])

    kinds = [site.scores.kind if site.scores else None for site in layout.sites]
    kind = [kinds[row.place] for row in layout.rows]
    found: dict[str, list[float | None]] = {
        "entropy": [mean("entropy", i) for i in rows],
        "mean_entropy": list(totals.mean_entropy),
        "z_loss": [None if kind[i] == "probabilities" else mean("z_loss", i) for i in rows],
        "max_logit": [
            totals.max_logit[i] if totals.sums[i]["scored"] and kind[i] != "probabilities" else None
            for i in rows
        ],
        "selected_mass": [mean("selected_mass", i) for i in rows],
        "margin": [_positive(mean("margin", i)) for i in rows],
        "grad_norm": [
            None if math.isnan(s or 0.0) else math.sqrt(s or 0) for s in totals.grad_squares
        ],
    }
    if any(site.drops for site in layout.sites):
        pairs = [
            n * layout.top_k[row.place] for n, row in zip(totals.tokens, layout.rows, strict=True)
        ]
        found["drop_rate"] = [
            _mean(totals.sums[i]["dropped"], pairs[i])
            if layout.sites[layout.rows[i].place].drops
            else None
            for i in rows
        ]
    if any(totals.unrouted):
        found["unrouted"] = list(totals.unrouted)
    if any(n != tokens for n in totals.tokens):
        found["tokens"] = list(totals.tokens)
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


def _incomplete(totals: StepSums, layout: Layout, unseen: list[bool]) -> str | None:
    """Why the line does not hold all of the step; ``None`` where it does."""
    if (failed := round(totals.extra["failed"])) > 0:
        return f"{failed} ranks did not count"
    if not totals.extra["passes"]:
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
