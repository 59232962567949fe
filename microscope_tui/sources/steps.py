"""Step records of a source: counts with the summaries that follow from them."""

from collections.abc import Mapping, Sequence

from microscope_tui import measures
from microscope_tui.runlog import Values
from microscope_tui.sources.reader import Record

SHARES_SUM = 1_000_000
"""What the counts of a router add up to if only shares are known."""
Counts = Sequence[int]


def step_record(
    step: int,
    tokens_per_expert: Sequence[Counts | None] | None = None,
    *,
    expert_bias: Sequence[Sequence[float] | None] | None = None,
    router: Mapping[str, Values] | None = None,
    **numbers: float | None,
) -> Record:
    """The record of one step.

    Args:
        step: number of the optimizer step, or of the forward pass.
        tokens_per_expert: a row of counts per router, ``None`` where one is unknown.
        expert_bias: the selection bias, in the same order.
        router: summaries that the source has; those that follow from the counts are derived.
        numbers: ``time``, ``loss``, ``tokens`` … as in the run log.
    """
    summaries = dict(router or {})
    rows = tokens_per_expert
    if rows is not None and any(row is not None for row in rows):
        derived = measures.summarise([row or [] for row in rows])
        for name, values in derived.items():
            given = summaries.get(name) or [None] * len(rows)
            both = zip(values, given, rows, strict=True)
            summaries[name] = [value if row else other for value, other, row in both]
    else:
        rows = None
    record: Record = {"kind": "step", "step": step, **numbers}
    record["router"] = summaries or None
    record["expert_bias"] = expert_bias and [row or [] for row in expert_bias]
    record["tokens_per_expert"] = rows
    return {key: value for key, value in record.items() if value is not None}


def counts_of_shares(shares: Sequence[float]) -> list[int] | None:
    """Shares (or loads: any multiple of them) as counts that sum to ``SHARES_SUM``.

    The remainders go to the largest fractions, so that no count is off by more than one. ``None``
    if they are no distribution: negative, not finite, or all zero.
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
