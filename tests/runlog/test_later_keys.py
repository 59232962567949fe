"""What the format gained later: pairs that went nowhere, means per expert, incomplete lines."""

import json
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from microscope_tui.runlog import BadLine, decode_line
from microscope_tui.runlog.decode import _without_matrices, decode_matrices
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


def test_row_and_unrouted_together_are_tokens_times_top_k() -> None:
    assert check(LINE) == []
    assert check(LINE | {"router": LINE["router"] | STILL}) == []


STILL = {"looked_tensors": [3, 0], "still_tensors": [3, None], "unchanged_tensors": [None, 0]}
TRAINING: dict[str, Any] = {"routers": [2, 2], "experts": [0, 48], "expert_weights": 0.5}
TRAINING |= {"adapters": {"experts": 0, "router": 2}, "missing_targets": ["w1"]}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"routers": [3, 2]}, "training.routers is a list of 2, expected [trained, all]"),
        ({"attention": 3, "embeddings": [1]}, "training.embeddings is a list of 1"),
        ({"expert_weights": 1.5}, "training.expert_weights is 1.5, expected a share"),
        ({"expert_weights": "NaN", "adapters": ["q"]}, "training.adapters is a list"),
        ({"missing_targets": "w1"}, 'training.missing_targets is "w1", expected a list of names'),
    ],
)
def test_what_cannot_be_read_of_the_training_is_left_out(wrong: Any, reason: str) -> None:
    headers = [HEADER | {"training": one} for one in (TRAINING, TRAINING | wrong)]
    sound, spoilt = (json.dumps(one).encode() for one in headers)
    kept = {key: value for key, value in TRAINING.items() if key not in wrong}
    assert [decode_line(one).training for one in (sound, spoilt)] == [TRAINING, kept]
    found = list(problems_in([(1, sound), (2, spoilt)]))
    assert {problem.line for problem in found} == {2}
    assert any(reason in problem.reason for problem in found)


def test_names_and_numbers_of_adapters_are_limited_and_cleaned() -> None:
    many = {f"\x1b{i}": i for i in range(30)} | {"experts": -1}
    training = {"adapters": many, "missing_targets": [3, *["\n" * 99] * 30]}
    found = decode_line(json.dumps(HEADER | {"training": training}).encode()).training
    assert found["adapters"] == {f"\N{REPLACEMENT CHARACTER}{i}": i for i in range(20)}
    assert found["missing_targets"] == [" " * 79 + "…"] * 19


def test_a_row_that_lacks_pairs_which_went_nowhere_is_found() -> None:
    wrong = LINE | {"router": {"unrouted": [5, 0]}}
    (reason,) = check(wrong)
    assert "tokens_per_expert[0] + router.unrouted[0] sums to 15, expected" in reason
    assert "sums to 10, expected tokens x top_k = 16" in check(LINE | {"router": {}})[0]


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_a_fast_reader_cuts_at_the_first_of_the_four_matrices(separators: tuple[str, str]) -> None:
    line = json.dumps(LINE, separators=separators).encode()
    head = _without_matrices(line)
    assert json.loads(head) == {name: LINE[name] for name in list(LINE)[:5]}
    record = decode_line(line)
    assert record.router.unrouted == [6, 0]
    assert decode_matrices(line, 2).tokens_per_expert == LINE["tokens_per_expert"]


@settings(max_examples=300)
@given(
    st.just(list(LINE)[1:]) | st.permutations(list(LINE)[1:]),
    st.sampled_from([(",", ":"), (", ", ": ")]),
    st.sampled_from([b"", b'"expert_bias":', b'"', b"\0", b"]", b'"x":[],']),
    st.integers(1, 99),
    st.booleans(),
)
def test_what_a_fast_reader_takes_from_a_line_is_what_a_careful_one_takes(
    keys: list[str], separators: tuple[str, str], damage: bytes, back: int, torn: bool
) -> None:
    line = json.dumps({name: LINE[name] for name in ("kind", *keys)}, separators=separators)
    spoilt = line.encode()[:-back] + damage + line.encode()[-back:] * (not torn)
    careful = b" " + spoilt  # does not begin as the writers' lines do
    try:
        expected = decode_line(careful)
    except BadLine:
        if torn or b"\0" in spoilt:
            with pytest.raises(BadLine):
                decode_line(spoilt)
        return
    assert repr(decode_line(spoilt)) == repr(expected).replace("losses={}", "losses=None")


def test_means_in_another_place_are_understood() -> None:
    moved = {"kind": "step", "mean_weight": LINE["mean_weight"], **LINE}
    record = decode_line(json.dumps(moved).encode())
    assert record.loss == 2.0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mean_weight": [[0.5, 0.25], []]}, r"mean_weight[0] has 2 entries, expected"),
        ({"mean_output_norm": [[1, 2, "x", 4], []]}, r"mean_output_norm[0][2] is"),
        ({"mean_weight": [[0.5, 0.25, 0.1, 0.5]]}, "mean_weight has 1 entries for 2 routers"),
        ({"incomplete": 3}, "incomplete is 3, expected a string"),
        ({"router": {"unrouted": [-1, 0]}}, "router.unrouted[0] is -1"),
        ({"router": {"still_tensors": [0.5, 0]}}, "router.still_tensors[0] is 0.5"),
    ],
)
def test_wrong_values_are_named(changes: dict[str, Any], reason: str) -> None:
    assert any(reason in said for said in check(LINE | changes))


def test_an_incomplete_line_with_a_router_that_was_not_counted_is_valid() -> None:
    line = {"kind": "step", "incomplete": "not seen: L1"} | LINE
    assert check(line | {"tokens_per_expert": [[5, 4, 0, 1], None]}) == []
