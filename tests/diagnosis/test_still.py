"""STILL: what should train and gets no gradient, or stays what it was."""

from typing import Any

import pytest

from microscope_tui.diagnosis import Severity, report
from tests.conftest import header
from tests.diagnosis.conftest import COLLAPSED, Record, judge, steps

INFO, WARN, CRITICAL, _ = Severity
AT = (1, 2, 3, 101, 201, 301)
"""The steps in which the probe looks."""


def looked(
    last: int, still: Any, same: Any = 0, of_all: Any = 12, at: Any = AT, layer: Any = None
) -> list[Record]:
    """Steps of which those in ``at`` were looked at; ``still(step)`` is of the layer L2."""

    def router(n: int) -> dict[str, Any]:
        if n not in at:
            return dict.fromkeys(("looked_tensors", "still_tensors"), [None] * 3) if n % 2 else {}
        here = still(n) if callable(still) else still
        found = {"looked_tensors": [12, of_all, 12], "still_tensors": [0, here, 0]}
        unchanged, changed = (one(n) if callable(one) else one for one in (same, layer))
        more = {} if layer is None else {"layer_changed": [1, int(changed), None]}
        return found | {"unchanged_tensors": [0, unchanged, None]} | more

    return steps(1, last, router=router)


def found(records: list[Record], **changes: Any) -> list[Any]:
    episodes = judge([header(**changes), *records]).episodes
    return [(e.severity, e.onset, e.alarm, e.recovered_at) for e in episodes if e.router_index == 1]


@pytest.mark.parametrize(
    ("still", "severity", "words"),
    [
        (12, CRITICAL, "no weight gets a gradient: 12 of 12 tensors"),
        (11, CRITICAL, "some weights get no gradient: 11 of 12 tensors"),
        (10, WARN, "some weights get no gradient: 10 of 12 tensors"),
        (lambda n: 12 if n < 3 else 1, WARN, "some weights get no gradient: 1 of 12 tensors"),
    ],
)
def test_missing_gradients_are_found_in_three_looks(still: Any, severity: Any, words: str) -> None:
    assert found(looked(3, still)) == [(severity, 1, 3, None)]
    ((_, advice),) = report(judge([header(profile="finetune"), *looked(3, still)]))
    assert advice.verdict == "Weights do not train in L2 since step 1"
    assert words in advice.why
    assert "may ignore adapters" in advice.next


@pytest.mark.parametrize(
    "records",
    [
        looked(320, 0),
        looked(2, 12),  # a short run
        looked(320, lambda n: 12 * (n != 2 and n != 201)),  # never three in a row
        [header(profile="eval"), *looked(320, 12)],
        looked(320, 0, of_all=0),  # all of it is frozen, or without tokens
        looked(320, 3, of_all=None),
        *(looked(320, bad) for bad in (-1, 13, "NaN", "Infinity", None)),
        *(looked(320, 0, same=bad) for bad in (13, "NaN")),
    ],
)
def test_nothing_is_concluded_from_less_than_three_looks_in_a_row(records: list[Record]) -> None:
    assert found(records) == []


def test_looks_follow_each_other_however_many_steps_are_between_them() -> None:
    records = looked(320, lambda n: 12 * (n > 3), at=(1, 2, 3, 101, 202, 303))
    assert found(records) == [(CRITICAL, 101, 303, None)]
    assert found([r for r in records if r["step"] % 101 < 4]) == [(CRITICAL, 101, 303, None)]


def test_a_look_without_a_still_tensor_ends_it_and_one_without_a_value_does_not() -> None:
    assert found(looked(320, lambda n: 4 if n < 201 else 0)) == [(WARN, 1, 3, 201)]
    for nothing in (None, 0):
        records = looked(101, lambda n: 4 * (n < 101))
        records[100]["router"]["looked_tensors"][1] = nothing
        assert found(records) == [(WARN, 1, 3, None)]


@pytest.mark.parametrize(
    ("resumed", "after", "dates"),
    [
        (3, 12, [(CRITICAL, 1, 3, None)]),  # with the evidence from before
        (3, 0, []),  # superseded
        (4, 0, [(CRITICAL, 1, 3, 4)]),
        (1, 12, [(CRITICAL, 1, 3, None)]),
    ],
)
def test_a_resume_keeps_the_looks_before_it(resumed: int, after: int, dates: list[Any]) -> None:
    again = looked(resumed + 2, after, at=range(400))[resumed - 1 :]
    assert found([*looked(3, 12), header(resumed_at_step=resumed), *again]) == dates


@pytest.mark.parametrize(
    ("dtype", "severity", "why", "fix"),
    [
        ("fp32", WARN, "although the learning rate is not zero", "the optimizer holds"),
        ("bf16", INFO, "updates are lost in rounding", "in fp32"),
    ],
)
def test_unchanged_weights_are_found_at_once(dtype: str, severity: Any, why: str, fix: str) -> None:
    records = looked(210, 0, same=5, at=(101, 201))
    assert found(records[:150], config={"dtype": dtype}) == [(severity, 1, 101, None)]
    ((_, advice),) = report(judge([header(config={"dtype": dtype}), *records]))
    assert "5 of 12 tensors are what they were 100 logged steps before" in advice.why
    assert why in advice.why
    assert fix in advice.next
    assert found([*records[:200], *looked(201, 0)[200:]]) == [(WARN, 1, 101, 201)]
    assert found(looked(101, 12, same=12), config={"dtype": dtype}) == [(CRITICAL, 1, 3, None)]


@pytest.mark.parametrize(
    ("last", "same", "layer", "of_all", "expected"),
    [
        (210, 11, 1, 12, [(CRITICAL, 1, 101, None)]),
        (150, 11, 1, 12, [(WARN, 1, 101, None)]),  # one comparison
        (320, lambda n: 11 * (n != 201), 1, 12, [(WARN, 1, 101, None)]),  # they changed between
        (320, 11, lambda n: n != 201, 12, [(WARN, 1, 101, None)]),  # the layer rested between
        (320, 10, 1, 12, [(WARN, 1, 101, None)]),
        (320, 1, 1, 1, [(WARN, 1, 101, None)]),  # the router alone
        (320, 12, 0, 12, [(INFO, 1, 101, None)]),
    ],
)
def test_experts_that_stay_twice_while_their_layer_changes_are_critical_and_a_resting_layer_is_not(
    last: int, same: Any, layer: Any, of_all: int, expected: Any
) -> None:
    records = looked(last, 0, same, of_all, at=AT[3:], layer=layer)
    assert found(records) == expected


def test_rounding_is_not_the_cause_in_bf16_where_the_layer_changed() -> None:
    records = [header(config={"dtype": "bf16"}), *looked(210, 0, 11, at=AT[3:], layer=1)]
    ((finding, advice),) = report(judge(records))
    assert finding.severity is WARN
    assert "the optimizer holds these weights" in advice.next


def test_a_resting_layer_is_no_part_of_the_finding_of_another_one() -> None:
    records = looked(210, 0, 12, at=AT[3:], layer=0)
    for record in records:
        if "unchanged_tensors" in record["router"]:
            record["router"]["unchanged_tensors"][0] = 11
    critical, resting = report(judge([header(), *records]))
    assert critical[1].verdict == "Weights do not train in L1 since step 1"
    assert resting[0].layers == ("L2",)
    assert "if the layer rests on purpose (LISA, gradual unfreezing)" in resting[1].next


def test_the_layers_are_named_and_come_before_what_follows_from_them() -> None:
    records = looked(160, 12, at=range(400))
    for record in records:
        record["router"]["still_tensors"] = [12, 12, 12]
        record["router"] |= dict(effective_experts=[7.9, 2.0, 7.9], max_load=[1.2, 4.0, 1.2])
        record["tokens_per_expert"][1] = COLLAPSED
    advised = report(judge([header(), *records]))
    assert [f.rule for f, _ in advised[:2] if f.severity is CRITICAL] == ["STILL", "COLLAPSE"]
    assert advised[0][1].verdict == "Weights do not train in L1, L2, L3 since step 1"
