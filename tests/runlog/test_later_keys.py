"""What the format gained later: pairs that went nowhere, means per expert, incomplete lines."""

import json
from typing import Any

import pytest

from microscope_tui.diagnosis import Diagnosis, Severity
from microscope_tui.runlog import (
    RunReader,
    RunRecord,
    StepEntry,
    StepRecord,
    decode_line,
    decode_matrices,
)
from microscope_tui.runlog.decode import _without_matrices
from tests.problems import problems_in

HEADER = {
    "kind": "run",
    "format_version": 1,
    "model": {"layers": [0, 1], "num_experts": 4, "top_k": 2},
    "source": {"writer": "test", "counts": "exact"},
}
LINE: dict[str, Any] = {
    "kind": "step",
    "step": 1,
    "loss": 2.0,
    "tokens": 8,
    "router": {"unrouted": [6, 0]},
    "mean_weight": [[0.5, 0.25, None, 0.5], []],
    "mean_output_norm": [[1.5, 2.25, None, 3.5], []],
    "expert_bias": [],
    "tokens_per_expert": [[5, 4, 0, 1], [4, 4, 4, 4]],
}


def check(line: dict[str, Any]) -> list[str]:
    lines = [json.dumps(HEADER).encode(), json.dumps(line).encode()]
    return [problem.reason for problem in problems_in(enumerate(lines, 1))]


def judged(line: dict[str, Any], steps: int = 12) -> Diagnosis:
    reader = RunReader("run")
    (run,) = reader.feed(json.dumps(HEADER).encode() + b"\n")
    assert isinstance(run, RunRecord)
    diagnosis = Diagnosis(run)
    for step in range(1, steps + 1):
        for entry in reader.feed(json.dumps(line | {"step": step}).encode() + b"\n"):
            assert isinstance(entry, StepEntry)
            diagnosis.observe(entry.record, entry.counts, entry.biases)
    return diagnosis


def faults(diagnosis: Diagnosis) -> list[Any]:
    found = [e for e in diagnosis.episodes if e.severity is Severity.ERROR]
    return [episode.facts["cause"] for episode in found]


def test_row_and_unrouted_together_are_tokens_times_top_k() -> None:
    assert check(LINE) == []
    assert faults(judged(LINE)) == []


def test_a_row_that_lacks_pairs_which_went_nowhere_is_found() -> None:
    wrong = LINE | {"router": {"unrouted": [5, 0]}}
    (reason,) = check(wrong)
    assert "tokens_per_expert[0] + router.unrouted[0] sums to 15, expected" in reason
    assert faults(judged(wrong)) == ["sum"]
    assert "sums to 10, expected tokens x top_k = 16" in check(LINE | {"router": {}})[0]


def test_tokens_that_choose_fewer_real_experts_than_k_are_no_meter_fault() -> None:
    line = LINE | {"tokens_per_expert": [[8, 0, 0, 0], [4, 4, 4, 4]]}
    line["router"] = {"unrouted": [8, 0], "effective_experts": [1.0, 4.0], "max_load": [4.0, 1.0]}
    line["router"] |= {"dead_experts": [3, 0], "starved_experts": [3, 0]}
    assert faults(judged(line)) == []


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_a_fast_reader_cuts_at_the_first_of_the_four_matrices(separators: tuple[str, str]) -> None:
    line = json.dumps(LINE, separators=separators).encode()
    head = _without_matrices(line)
    assert json.loads(head) == {name: LINE[name] for name in list(LINE)[:5]}
    record = decode_line(line)
    assert isinstance(record, StepRecord)
    assert record.router.unrouted == [6, 0]
    assert decode_matrices(line, 2).tokens_per_expert == LINE["tokens_per_expert"]


def test_means_in_another_place_are_understood_and_said() -> None:
    moved = {"kind": "step", "mean_weight": LINE["mean_weight"], **LINE}
    assert any("the last, in this order" in reason for reason in check(moved))
    record = decode_line(json.dumps(moved).encode())
    assert isinstance(record, StepRecord)
    assert record.loss == 2.0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mean_weight": [[0.5, 0.25], []]}, r"mean_weight[0] has 2 entries, expected"),
        ({"mean_output_norm": [[1, 2, "x", 4], []]}, r"mean_output_norm[0][2] is"),
        ({"mean_weight": [[0.5, 0.25, 0.1, 0.5]]}, "mean_weight has 1 entries for 2 routers"),
        ({"incomplete": 3}, "incomplete is 3, expected a string"),
        ({"router": {"unrouted": [-1, 0]}}, "router.unrouted[0] is -1"),
    ],
)
def test_wrong_values_are_named(changes: dict[str, Any], reason: str) -> None:
    assert any(reason in said for said in check(LINE | changes))


def test_an_incomplete_line_with_a_router_that_was_not_counted_is_valid() -> None:
    line = {"kind": "step", "incomplete": "not seen: L1"} | LINE
    assert check(line | {"tokens_per_expert": [[5, 4, 0, 1], None]}) == []


@pytest.mark.parametrize("pairs", ["NaN", "-Infinity", None, -3, 10**400, "x"])
def test_an_impossible_number_of_unrouted_pairs_hurts_no_reader(pairs: Any) -> None:
    assert faults(judged(LINE | {"router": {"unrouted": [pairs, 0]}})) == ["sum"]
