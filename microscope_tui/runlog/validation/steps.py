"""Validates ``step`` records: possible values, and parts that agree with each other.

A trainer that counts twice, counts after the drop or computes a summary from another step writes
valid JSON. Such mistakes are found because a row of counts has to sum to tokens × k and because
summaries can be recomputed from counts.
"""

import math
from typing import Any

from microscope_tui.runlog.validation.counts import Counts, check_bias, check_counts, check_means
from microscope_tui.runlog.validation.fields import (
    COUNT,
    SHARE,
    TIME,
    Number,
    mapping,
    number,
    per_router,
    text,
    unknown_keys,
)
from microscope_tui.runlog.validation.problems import Problems
from microscope_tui.runlog.validation.run import RunPromise

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
