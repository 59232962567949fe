"""The records of the run log that readers make: a header, and one record a step."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from msgspec import UNSET, UnsetType

from microscope_tui import measures
from microscope_tui.runlog import RunHeader, Values, one_or_each, safe_text
from microscope_tui.sources.reader import Record

SHARES_SUM = 1_000_000
"""What the counts of a router add up to if only shares are known."""
Counts = Sequence[int]
T = TypeVar("T")


def run_record(
    run: str,
    depths: Sequence[int],
    experts: Sequence[int],
    top_k: int | None,
    *,
    writer: str,
    counts: str,
    names: Sequence[str],
    profile: str = "pretrain",
    time: float | None = None,
    planned_steps: int | None = None,
    note: str = "",
    layer_order: str = "",
    unconfirmed: str = "",
    hidden_layers: int = 0,
) -> Record:
    """The ``run`` record of a source; ``None`` or 0: unknown.

    Args:
        depths: of every router, in forward order.
        counts: ``exact``, ``top1``, ``shares``, ``local_rank`` or ``none``.
        names: shown names of the routers.
        note: what limits these counts, in a few words.
        layer_order: ``unknown`` if the routers may be listed in another order than in the model.
        unconfirmed: the keys that were taken for loads of experts without asking.
        hidden_layers: of the model, dense ones included.
    """
    model: dict[str, Any] = {
        "layers": list(depths),
        "layer_names": list(names),
        "num_experts": one_or_each(experts),
        "top_k": top_k,  # null: unknown
    }
    if hidden_layers:
        model["num_hidden_layers"] = hidden_layers
    source = {
        "writer": writer,
        "counts": counts,
        "note": safe_text(note, 200),
        "layer_order": layer_order,
        "unconfirmed": safe_text(unconfirmed, 300),
    }
    return RunHeader(
        run=safe_text(run, 120),
        time=_or_unset(time),
        planned_steps=_or_unset(planned_steps),
        profile=profile,
        model=model,
        source={key: value for key, value in source.items() if value},
    ).to_json()


def _or_unset(value: T | None) -> T | UnsetType:
    if value is None:
        return UNSET
    return value


def step_record(
    step: int,
    tokens_per_expert: Sequence[Counts | None] | None = None,
    *,
    expert_bias: Sequence[Sequence[float] | None] | None = None,
    router: Mapping[str, Values] | None = None,
    **numbers: float | Mapping[str, float] | None,
) -> Record:
    """The record of one step; rows of unknown counts are ``None``.

    ``router``: summaries that the source has, beside those that follow from the counts;
    ``numbers``: ``time``, ``loss``, ``losses`` … as in the run log.
    """
    summaries = dict(router or {})
    rows = tokens_per_expert or ()
    is_counted = any(row is not None for row in rows)
    if is_counted:
        summaries |= _derived(rows, summaries)
    record: Record = {"kind": "step", "step": step, **numbers}
    record["router"] = summaries or None
    record["expert_bias"] = expert_bias and [row or [] for row in expert_bias]
    record["tokens_per_expert"] = rows if is_counted else None
    return {key: value for key, value in record.items() if value is not None}


def _derived(rows: Sequence[Counts | None], given: Mapping[str, Values]) -> dict[str, Values]:
    """The summaries that follow from counts; of a router without counts what the source has."""
    derived = measures.summarise([row or [] for row in rows])
    if all(rows):
        return derived
    for name, values in derived.items():
        others = given.get(name) or [None] * len(rows)
        for at, row in enumerate(rows):
            if not row:
                values[at] = others[at]
    return derived


def counts_of_shares(shares: Sequence[float]) -> list[int] | None:
    """Shares (or loads: any multiple of them) as counts that sum to ``SHARES_SUM``.

    The remainders go to the largest fractions, so that no count is off by more than one. ``None``
    if they are not a distribution: negative, not finite, or all zero.
    """
    total = sum(shares)
    if not 0 < total < float("inf") or min(shares) < 0:
        return None
    exact = [share / total * SHARES_SUM for share in shares]
    counts = [int(value) for value in exact]
    left = SHARES_SUM - sum(counts)
    by_fraction = sorted(range(len(exact)), key=lambda e: counts[e] - exact[e])
    for expert in by_fraction[:left]:
        counts[expert] += 1
    return counts
