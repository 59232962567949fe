"""What generated logs have found, said once more as claims of their own."""

import os
from pathlib import Path

import pytest

from microscope_tui.runlog import RunReader, StepEntry, decode_line, glance
from microscope_tui.watch.history import Row
from tests.conftest import open_log
from tests.hostile.poison import HEADER, STEP


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xed\xa0\x80", b"\xff"])
def test_a_stray_byte_in_a_name_does_not_cost_the_header(name: bytes) -> None:
    run = decode_line(HEADER[:-2] + b',"run":"' + name + b'"}')
    assert [router.num_experts for router in run.routers] == [2]
    assert "�" in run.run


@pytest.mark.parametrize(
    "part",
    [
        *(b'"x":"\xff"', b'"\xff":1', b'"losses":{"\xff":1}', b'"x":' + b"9" * 5000),
        *(b'"expert_bias":' + bias for bias in (b"[[0.\xfe1]]", b"01,0.2]]", b"tru")),
    ],
)
def test_what_cannot_be_read_costs_neither_the_step_nor_its_counts(part: bytes) -> None:
    line = b'{"kind":"step","step":2,"tokens":8,' + part + b',"tokens_per_expert":[[4,4]]}\n'
    step = list(RunReader("r").feed(HEADER + line))[1]
    assert step.record.step == 2
    assert step.counts(0) == step.matrices().tokens_per_expert[0] == [4, 4]


def test_a_number_of_5000_digits_in_a_step_with_a_nan_costs_that_number() -> None:
    record = decode_line(b'{"kind":"step","step":2,"loss":NaN,"grad_norm":' + b"9" * 5000 + b"}")
    assert (record.step, record.grad_norm) == (2, None)


@pytest.mark.parametrize("row", [b'[[4,"\xf0\x91"]]', b"[[4," + b'{"a":' * 10_000 + b"]]"])
def test_a_row_of_counts_that_cannot_be_decoded_is_no_row(row: bytes) -> None:
    line = b'{"kind":"step","step":2,"tokens":8,"tokens_per_expert":' + row + b"}\n"
    for entry in RunReader("r").feed(HEADER + line):
        if isinstance(entry, StepEntry):
            assert entry.counts(0) is None


@pytest.mark.parametrize("rest", [b"\xff", b'"\xe9"}', b"\xed\xa0\x80}", b'{"a":"\xff"}'])
def test_a_torn_end_in_a_file_at_rest_does_not_end_the_reader(path: Path, rest: bytes) -> None:
    path.write_bytes(HEADER + STEP % 1 + rest)
    os.utime(path, (1e9, 1e9))
    watch = open_log(path)
    assert watch.latest.record.step == 1


@pytest.mark.parametrize("value", [b'"Infinity"', b'"NaN"', b"-3.7", b"1e999"])
def test_a_step_time_that_is_none_keeps_no_run_alive_for_ever(path: Path, value: bytes) -> None:
    path.write_bytes(HEADER + b'{"kind":"step","step":1,"step_time_s":' + value + b"}\n")
    assert glance(path).step_time_s is None


def test_a_log_that_vanishes_while_a_row_is_read_again_raises_nothing(path: Path) -> None:
    path.write_bytes(HEADER + STEP % 1 + STEP % 2)
    watch = open_log(path)
    row = Row(1, len(HEADER))
    assert [e.record.step for e in watch._reread(row, watch.run, 2)] == [1]
    path.unlink()
    assert list(watch._reread(row, watch.run, 2)) == []
