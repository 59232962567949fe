"""Validates the two matrices of a step: counts and biases.

Most bytes of a log are in them, so a few C loops decide whether a row is valid; only invalid rows
are checked entry by entry.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from microscope_tui.runlog.problems import (
    COUNT,
    SHARE,
    TIME,
    Number,
    Problems,
    mapping,
    number,
    per_router,
    shown,
    text,
    unknown_keys,
)
from microscope_tui.runlog.validate_run import RunPromise

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


_DERIVED_SLACK = 1e-3
_ENTROPY_SLACK = 5e-3  # relative: bf16 has eight bits
_ZERO_SLACK = 1e-6  # an entropy or a margin of zero, computed in fp32

_NOT_NEGATIVE = Number("a number of at least 0", 0)
_MEASURED = Number("a number of at least 0", 0, non_finite=True)
_STEP_NUMBERS = {
    "time": TIME,
    "loss": Number("nats a token", non_finite=True),
    "learning_rate": _NOT_NEGATIVE,
    "grad_norm": _MEASURED,
    "tokens": Number("an integer of at least 1", 1, 2**53, integer=True),
    "tokens_per_s": _NOT_NEGATIVE,
    "step_time_s": _NOT_NEGATIVE,
    "memory_bytes": _NOT_NEGATIVE,
}
_ENTROPY = Number("nats, 0 to ln E", -_ZERO_SLACK, non_finite=True)
_ROUTER_NUMBERS = {
    "entropy": _ENTROPY,
    "mean_entropy": _ENTROPY,
    "effective_experts": Number("a number from 1 to num_experts", 1 - _DERIVED_SLACK),
    "max_load": Number("max ÷ mean of the counts, at least 1", 1 - _DERIVED_SLACK),
    "dead_experts": COUNT,
    "starved_experts": COUNT,
    "drop_rate": SHARE,
    "z_loss": _MEASURED,
    "max_logit": Number("a number", non_finite=True),
    "grad_norm": _MEASURED,
    "selected_mass": Number("a share in [0, 1]", 0, 1 + _DERIVED_SLACK, non_finite=True),
    "margin": Number("a number of at least 0", -_ZERO_SLACK, non_finite=True),
    "tokens": COUNT,
    "unrouted": COUNT,
    "disagreement": SHARE,
}
_OF_EXPERTS = ("effective_experts", "max_load", "dead_experts", "starved_experts")
_ROUTER_KEYS = frozenset(_ROUTER_NUMBERS)
_MEANS = ("mean_weight", "mean_output_norm")
_MATRICES = (*_MEANS, "expert_bias", "tokens_per_expert")
_STEP_KEYS = frozenset(
    {"kind", "step", "losses", "router", "incomplete", *_MATRICES, *_STEP_NUMBERS}
)

Summaries = dict[str, list[float | None]]


def check_step(problems: Problems, record: dict[str, Any], promise: RunPromise) -> bool:
    """Check everything of a step but its place in the run; true if it measures any load."""
    unknown_keys(problems, "", record, _STEP_KEYS)
    _check_key_order(problems, record)
    numbers = {
        key: number(problems, key, record.get(key), rule) for key, rule in _STEP_NUMBERS.items()
    }
    for name, value in mapping(problems, "losses", record.get("losses")).items():
        text(problems, "a key of losses", name)
        number(problems, "a value of losses", value, _STEP_NUMBERS["loss"])
    router = mapping(problems, "router", record.get("router"))
    unknown_keys(problems, "router.", router, _ROUTER_KEYS)
    summaries = _summaries(problems, router, promise)
    _check_entropies(problems, summaries, promise)
    _check_ranges(problems, summaries, promise)
    text(problems, "incomplete", record.get("incomplete"))
    for name in _MEANS:
        check_means(problems, name, record.get(name), promise)
    check_bias(problems, record.get("expert_bias"), promise)
    counts = check_counts(
        problems, record.get("tokens_per_expert"), promise, numbers["tokens"], summaries
    )
    for index, known in enumerate(counts):
        if known is not None:
            _compare(problems, summaries, index, known, promise.counts)
    return record.get("tokens_per_expert") is not None or "effective_experts" in summaries


def _check_key_order(problems: Problems, record: dict[str, Any]) -> None:
    keys = list(record)
    if keys[0] != "kind":
        problems.hint(
            "kind first",
            '"kind" is not the first key of the step: start the line with {"kind": "step" '
            "so that readers can skip it",
        )
    present = [key for key in _MATRICES if key in record]
    if present and keys[-len(present) :] != present:
        problems.hint(
            "key order",
            f"{' and '.join(present)} must be the last keys of the line, in this order: "
            "readers skip the end of the line, and are slow otherwise",
        )


def _summaries(problems: Problems, router: dict[str, Any], promise: RunPromise) -> Summaries:
    """The usable summaries by name."""
    summaries: Summaries = {}
    for name, rule in _ROUTER_NUMBERS.items():
        key = f"router.{name}"
        values = per_router(problems, key, router.get(name), promise.routers)
        if values is not None:
            summaries[name] = [
                None if value is None else number(problems, f"{key}[{i}]", value, rule, key)
                for i, value in enumerate(values)
            ]
    if promise.has_capacity is False and any(v is not None for v in summaries.get("drop_rate", ())):
        problems.hint(
            "drop_rate",
            "router.drop_rate without model.capacity_factor: leave it out where nothing can be "
            "dropped, or write the capacity factor",
        )
    return summaries


def _check_entropies(problems: Problems, summaries: Summaries, promise: RunPromise) -> None:
    entropies, means = summaries.get("entropy", []), summaries.get("mean_entropy", [])
    for name, values in (("entropy", entropies), ("mean_entropy", means)):
        for index, value in enumerate(values):
            experts = promise.experts(index)
            if value is None or experts is None:
                continue
            limit = math.log(experts)
            if value > limit * (1 + _ENTROPY_SLACK) + _ZERO_SLACK:
                problems.error(
                    f"range router.{name}",
                    f"router.{name}[{index}] is {value:g}, above ln {experts} = {limit:.4g}: "
                    "write nats, and divide sigmoid scores by their sum",
                )
    for index, (entropy, mean) in enumerate(zip(entropies, means, strict=False)):
        if entropy is None or mean is None:
            continue
        if entropy > mean + _ENTROPY_SLACK * max(mean, 0.1):
            problems.error(
                "entropy above mean_entropy",
                f"router.mean_entropy[{index}] is {mean:g}, below router.entropy[{index}] = "
                f"{entropy:g}, which is impossible: mean_entropy is the entropy of the mean "
                "probability, entropy the mean of the tokens' entropies",
            )


def _check_ranges(problems: Problems, summaries: Summaries, promise: RunPromise) -> None:
    """What counts experts, or is a multiple of the fair share, is at most E."""
    for name in _OF_EXPERTS:
        for index, value in enumerate(summaries.get(name, ())):
            experts = promise.experts(index)
            if value is None or experts is None or value <= experts * (1 + _DERIVED_SLACK):
                continue
            problems.error(
                f"range router.{name}",
                f"router.{name}[{index}] is {value:g}, above num_experts {experts}: "
                f"expected {_ROUTER_NUMBERS[name].what}",
            )
    dead, starved = summaries.get("dead_experts", []), summaries.get("starved_experts", [])
    for index, (none, few) in enumerate(zip(dead, starved, strict=False)):
        if none is not None and few is not None and few < none:
            problems.error(
                "starved below dead",
                f"router.starved_experts[{index}] is {few:g}, below router.dead_experts[{index}] "
                f"= {none:g}: count the dead ones among the starved",
            )


def _compare(
    problems: Problems, summaries: Summaries, index: int, counts: Counts, source: str | None
) -> None:
    """Summaries that contradict the counts of the same line."""
    derived = {
        "effective_experts": (counts.effective_experts, "exp(entropy of the counts)"),
        "max_load": (counts.max_load, "max ÷ mean of the counts"),
    }
    if source != "shares":  # a share may round to zero
        derived["dead_experts"] = (float(counts.dead_experts), "the number of zero counts")
    for name, (expected, formula) in derived.items():
        value = next(iter(summaries.get(name, [])[index : index + 1]), None)
        if value is None or abs(value - expected) <= _DERIVED_SLACK * max(1.0, expected):
            continue
        problems.error(
            f"contradiction router.{name}",
            f"router.{name}[{index}] is {value:g}, but tokens_per_expert[{index}] gives "
            f"{expected:.5g}: write {formula} of the same step, or leave it out",
        )
