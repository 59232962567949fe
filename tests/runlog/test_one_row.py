"""One router's counts are cut out of a line exactly as the full decoder would read them."""

import json
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from microscope_tui.runlog import StepEntry, StepRecord

COUNT = st.integers(0, 9999) | st.sampled_from([0, 2**61, 2**63, -1, 1.0, 1.5, None, "7", True, []])
ROWS = st.lists(st.lists(COUNT, max_size=4) | COUNT, max_size=4)


def entry(line: bytes, routers: int) -> StepEntry:
    return StepEntry(StepRecord(step=1), line, routers)


@settings(max_examples=400)
@given(ROWS, st.integers(0, 5), st.booleans(), st.sampled_from([None, (",", ":"), (" , ", " : ")]))
def test_a_row_alone_is_the_row_of_the_whole(
    rows: list[Any], routers: int, last: bool, separators: tuple[str, str] | None
) -> None:
    fields: dict[str, Any] = {"kind": "step", "step": 1, "note": '"tokens_per_expert":[[9]]'}
    fields |= {"tokens_per_expert": rows}
    if not last:
        fields |= {"expert_bias": [[0.5]]}
    line = json.dumps(fields, separators=separators).encode()
    whole = entry(line, routers).matrices().tokens_per_expert
    for index in range(routers):
        one = entry(line, routers)
        found = one.counts(index)
        if one.has_counts:
            assert found == whole[index]
        else:
            assert found is None or found == whole[index]


@pytest.mark.parametrize(
    "line",
    [
        b'{"tokens_per_expert":[[1,2],[3,4]],"tokens_per_expert":[[5,6],[7,8]]}',
        b'{"tokens_per_expert":[[5,6],[7,8]]}',
        b'{"tokens_per_expert": [[5, 6], [7, 8]] }',
        b'{"x":[[1,1],[2,2]],"tokens_per_expert":[[5,6],[7,8]]}',
    ],
)
def test_the_last_matrix_of_a_line_counts(line: bytes) -> None:
    assert [entry(line, 2).counts(at) for at in (0, 1)] == [[5, 6], [7, 8]]


@pytest.mark.parametrize("tail", [b"[null,[5,6]]", b"[ null , null,\n[5,6] ]"])
def test_counts_are_there_if_the_first_routers_have_none(tail: bytes) -> None:
    one = entry(b'{"tokens_per_expert":' + tail + b"}", tail.count(b"null") + 1)
    assert one.has_counts
    assert one.counts(0) is None
    assert one.counts(one.routers - 1) == [5, 6]


@pytest.mark.parametrize(
    "tail", [b"[[5,6],[7", b"[[5,6],[7,8]", b'[[5,6],"x"]', b"[[5,6]]", b"null"]
)
def test_a_damaged_matrix_gives_no_wrong_counts(tail: bytes) -> None:
    line = b'{"tokens_per_expert":' + tail + b"}"
    assert entry(line, 2).counts(1) is None
