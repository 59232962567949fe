"""Validates the two matrices of a step: counts and biases.

Most bytes of a log are in them, so a few C loops decide whether a row is valid; only invalid rows
are checked entry by entry.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from microscope_tui.runlog.validation.fields import COUNT, Number, number, per_router
from microscope_tui.runlog.validation.problems import Problems, shown
from microscope_tui.runlog.validation.run import RunPromise

SUM_OF_SHARES = 1_000_000
_BIAS = Number("a number", non_finite=True)
_COUNT_TYPES, _BIAS_TYPES = {int}, {int, float}


@dataclass(frozen=True, slots=True)
class Counts:
    """What follows from one row of counts (the formulas of ``measures``, repeated because of the
    import direction).
    """

    effective_experts: float
    max_load: float
    dead_experts: int


def check_counts(
    problems: Problems,
    value: Any,
    promise: RunPromise,
    tokens: float | None,
    summaries: dict[str, list[float | None]],
) -> list[Counts | None]:
    """Check ``tokens_per_expert``; what follows from each row that can be trusted."""
    rows = per_router(problems, "tokens_per_expert", value, promise.routers)
    if rows is None:
        return []
    if promise.counts == "none":
        problems.hint(
            "counts of none",
            'source.counts is "none" and the step has tokens_per_expert: '
            "write what the counts are (exact, top1, shares or local_rank)",
        )
    own = summaries.get("tokens", [])
    if tokens is None and not own and promise.counts != "shares":
        problems.hint(
            "no tokens",
            "tokens_per_expert without tokens: write the real tokens of the global batch, so that "
            "it can be checked whether the counts are complete",
        )
    known: list[Counts | None] = []
    for index, row in enumerate(rows):
        if row is None or not _is_row(problems, index, row, promise):
            known.append(None)
            continue
        here = own[index] if index < len(own) and own[index] is not None else tokens
        elsewhere = summaries.get("unrouted", [])[index : index + 1]
        _check_sum(problems, index, row, promise, here, int(next(iter(elsewhere), 0) or 0))
        derivable = promise.counts in ("exact", "top1", "shares") and any(row)
        known.append(_derived(row) if derivable else None)
    return known


def check_bias(problems: Problems, value: Any, promise: RunPromise) -> None:
    """Check ``expert_bias``: a row per router, ``[]`` for a router (or a model) without one."""
    if value == []:
        return
    rows = per_router(problems, "expert_bias", value, promise.routers)
    for index, row in enumerate(rows or ()):
        key = f"expert_bias[{index}]"
        if row is None or row == []:
            continue
        if not isinstance(row, list):
            problems.error("type expert_bias", f"{key} is {shown(row)}, expected a list of biases")
            continue
        _check_width(
            problems, key, row, promise.experts(index), "write [] for a router without one"
        )
        if set(map(type, row)) <= _BIAS_TYPES and None not in row:
            continue
        for expert, bias in enumerate(row):
            if bias is None:
                problems.error(
                    "null in expert_bias",
                    f"{key}[{expert}] is null: write a number for every expert, or [] for the row",
                )
                break
            number(problems, f"{key}[{expert}]", bias, _BIAS, "expert_bias")


def check_means(problems: Problems, name: str, value: Any, promise: RunPromise) -> None:
    """Check ``mean_weight`` and ``mean_output_norm``: null for an expert that nothing chose."""
    for index, row in enumerate(per_router(problems, name, value, promise.routers) or ()):
        key = f"{name}[{index}]"
        if row is None or row == []:
            continue
        if not isinstance(row, list):
            problems.error(f"type {name}", f"{key} is {shown(row)}, expected a list of means")
        elif _check_width(
            problems, key, row, promise.experts(index), "write [] where not measured"
        ):
            for expert, mean in enumerate(row):
                if mean is not None:
                    number(problems, f"{key}[{expert}]", mean, _BIAS, name)


def _is_row(problems: Problems, index: int, row: Any, promise: RunPromise) -> bool:
    """The row is counts and nothing else."""
    key = f"tokens_per_expert[{index}]"
    if not isinstance(row, list):
        problems.error(
            "type tokens_per_expert",
            f"{key} is {shown(row)}, expected a list of counts, or null where there are none",
        )
        return False
    if not _check_width(problems, key, row, promise.experts(index), "write null where not counted"):
        return False
    if set(map(type, row)) == _COUNT_TYPES and min(row) >= 0 and max(row) <= COUNT.high:
        return True
    for expert, count in enumerate(row):
        sound = type(count) is int and 0 <= count <= COUNT.high
        if not sound:
            name = f"{key}[{expert}]"
            if count is None:
                problems.error("null in counts", f"{name} is null: write a count, 0 for none")
            number(problems, name, count, COUNT, "tokens_per_expert")
            return False
    return False


def _check_width(
    problems: Problems, key: str, row: Sequence[Any], experts: int | None, otherwise: str
) -> bool:
    if row and (experts is None or len(row) == experts):
        return True
    expected = "at least one" if experts is None else f"num_experts = {experts:,}"
    problems.error(
        f"width {key.partition('[')[0]}",
        f"{key} has {len(row):,} entries, expected {expected}: one per routed expert, "
        f"shared ones left out; {otherwise}",
    )
    return False


def _check_sum(
    problems: Problems,
    index: int,
    row: list[int],
    promise: RunPromise,
    tokens: float | None,
    unrouted: int,
) -> None:
    key, total = f"tokens_per_expert[{index}]", sum(row) + unrouted
    named = f"{key} + router.unrouted[{index}]" if unrouted else key
    if promise.counts == "shares":
        if total != SUM_OF_SHARES:
            problems.error(
                "sum of shares",
                f"{key} sums to {total}, expected {SUM_OF_SHARES} for shares: scale the fractions "
                "to it and give what rounding leaves to the largest",
            )
        return
    top_k = promise.choices(index)
    if promise.counts not in ("exact", "top1", "local_rank") or top_k is None or tokens is None:
        return
    expected = int(tokens) * top_k
    if promise.counts == "local_rank":
        if total > expected:
            problems.error(
                "sum of a rank",
                f"{key} sums to {total}, above tokens x top_k = {expected} of the global batch: "
                "count the pairs of one rank once, and all ranks in tokens",
            )
    elif total != expected:
        problems.error(
            "sum",
            f"{named} sums to {total}, expected tokens x top_k = {expected}: "
            + _advice(total, expected),
        )
    if max(row) > tokens:
        expert = row.index(max(row))
        problems.error(
            "above tokens",
            f"{key}[{expert}] is {row[expert]}, above tokens = {int(tokens)}: a token chooses an "
            "expert at most once, count each pair once and all real tokens in tokens",
        )


def _advice(total: int, expected: int) -> str:
    if expected and total and total % expected == 0:
        return (
            f"{total // expected} times as many, count every selected pair once "
            "(not again in recomputed activations, not in evaluation)"
        )
    if total > expected:
        return "count every selected pair once, real tokens only (no padding)"
    return "count every selected pair once, all k choices, before any drop, over all ranks"


def _derived(row: list[int]) -> Counts:
    total, used = sum(row), [n for n in row if n]
    weighted = math.fsum(map(operator.mul, used, map(math.log, used)))
    effective = math.exp(max(0.0, math.log(total) - weighted / total))
    return Counts(effective, max(row) * len(row) / total, row.count(0))
