"""Converts the summaries of a step to curves of the history, and those to shown curves."""

import math
from collections.abc import Callable, Mapping, Sequence

from microscope_tui import measures
from microscope_tui.diagnosis import value_at
from microscope_tui.runlog import RouterInfo, RouterSummary, RunRecord, StepEntry, Values
from microscope_tui.watch.curve import NAN, Column
from microscope_tui.watch.history import History, rows_within

PER_ROUTER = ("effective_experts", "entropy", "mean_entropy", "drop_rate", "max_load")
PER_RUN = ("loss", "learning_rate", "grad_norm")
DERIVED = ("effective_experts", "max_load", "dead_experts", "starved_experts")
"""Summaries that can be derived from the counts of the same line."""
DEFAULT_MEMORY = 128 * 1024 * 1024


def new_history(run: RunRecord, memory_bytes: int, expected_steps: int = 0) -> History:
    """An empty history for the routers of ``run`` that stays within ``memory_bytes``.

    ``expected_steps``: where so many are known to come, rows begin wide enough for them.
    """
    routers = len(run.routers)
    capacity = rows_within(memory_bytes, len(PER_RUN) + len(PER_ROUTER) * routers)
    stride = 1
    while stride * capacity < expected_steps:
        stride *= 2
    widths = {**dict.fromkeys(PER_RUN, 1), **dict.fromkeys(PER_ROUTER, routers)}
    return History(widths, capacity, stride)


Row = Mapping[str, Sequence[float | None]]


def row_maker(routers: Sequence[RouterInfo]) -> Callable[[StepEntry], Row]:
    """A function from a step to the values that the history keeps for these routers."""
    # Below this load no expert of any router is chosen by every token: the usual case.
    sizes = [(r.num_experts, r.top_k) for r in routers]
    least = min((measures.ALWAYS_CHOSEN * e / k for e, k in sizes if k > 1), default=math.inf)

    def row_of(entry: StepEntry) -> Row:
        record, nothing = entry.record, (None,) * entry.routers
        summary = record.router
        effective, loads = summary.effective_experts, summary.max_load
        if effective and loads and (None in loads or max(loads) >= least):  # type: ignore[type-var, operator]
            effective = _as_judged(summary, sizes)
        return {
            "loss": (record.loss,),
            "learning_rate": (record.learning_rate,),
            "grad_norm": (record.grad_norm,),
            "effective_experts": effective or nothing,
            "entropy": summary.entropy or nothing,
            "mean_entropy": summary.mean_entropy or nothing,
            "drop_rate": summary.drop_rate or nothing,
            "max_load": loads or nothing,
        }

    return row_of


def _as_judged(summary: RouterSummary, sizes: Sequence[tuple[int, int]]) -> Values:
    """Effective experts that give the balance without an expert that every token chooses."""
    values: Values = []
    for index, (experts, top_k) in enumerate(sizes):
        effective = value_at(summary.effective_experts, index)
        load = value_at(summary.max_load, index)
        if measures.always_chosen(load, experts, top_k):
            c = measures.balance_of_summary(effective, load, experts, top_k)
            effective = None if c is None else top_k + c * (experts - top_k)
        values.append(effective)
    return values


def balance_now(
    summary: RouterSummary, index: int, router: RouterInfo, counts: Sequence[int] | None = None
) -> tuple[float | None, tuple[int, ...] | None]:
    """The collapse index of a router in one step, and the experts it leaves out.

    The experts are ``None`` where one is left out and only counts would tell which.

    Args:
        counts: of the same step, where they are at hand.
    """
    experts, top_k = router.num_experts, router.top_k
    load = value_at(summary.max_load, index)
    counted = counts is not None and len(counts) == experts
    if counts is not None and counted and measures.always_chosen(load, experts, top_k):
        found = measures.balance(counts, top_k)
        return found.collapse_index, found.without
    effective = value_at(summary.effective_experts, index)
    c = measures.balance_of_summary(effective, load, experts, top_k)
    return c, () if c == measures.collapse_index(effective, experts, top_k) else None


def balance(columns: Sequence[Column], num_experts: int, top_k: int) -> list[Column]:
    """Curves of effective experts as curves of the collapse index c."""

    def index(effective: float) -> float:
        value = measures.collapse_index(effective, num_experts, top_k)
        return NAN if value is None else value

    return [Column(index(c.low), index(c.mean), index(c.high)) for c in columns]


def complete_summary(entry: StepEntry) -> None:
    """Derive missing summaries from the counts."""
    summary = entry.record.router
    given = {name: getattr(summary, name) for name in DERIVED}
    if all(values is not None and None not in values for values in given.values()):
        return
    if not entry.has_counts:
        return
    rows = entry.matrices().tokens_per_expert
    derived = measures.summarise([row or [] for row in rows])
    for name, values in given.items():
        setattr(summary, name, _filled(values, rows, derived[name]))


def _filled(
    given: Values | None, rows: Sequence[list[int] | None], derived: Sequence[float | None]
) -> Values:
    """The given values, and derived ones where they are missing and counts are present."""
    mine = [None if row is None else value for row, value in zip(rows, derived, strict=True)]
    theirs = given or [None] * len(rows)
    return [m if t is None else t for t, m in zip(theirs, mine, strict=True)]
