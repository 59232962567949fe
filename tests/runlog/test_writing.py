"""The writer: whole lines, torn tails repaired, and a disk that fails never stops a training."""

import errno
import json
import logging
import math
import os
import shutil
from pathlib import Path

import pytest

from microscope_tui.runlog.writer import RunLogWriter, encode_record


def records(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_torn_last_line_is_cut_off_on_reopening(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    path.write_bytes(b'{"kind":"run"}\n{"kind":"st')
    RunLogWriter(path).write({"kind": "step", "step": 1})
    assert records(path) == [{"kind": "run"}, {"kind": "step", "step": 1}]


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"x" * 200_000)
    RunLogWriter(path).close()
    assert path.read_bytes() == b""


def test_non_finite_numbers_are_written_as_names_never_as_bare_tokens() -> None:
    line = encode_record({"a": math.nan, "b": [1.0, math.inf], "c": {"d": -math.inf, "e": None}})
    assert json.loads(line) == {
        "a": "NaN",
        "b": [1.0, "Infinity"],
        "c": {"d": "-Infinity", "e": None},
    }


def test_every_line_is_one_object_ended_by_a_newline() -> None:
    line = encode_record({"run": "two\nlines", "n": [[1, 2], [3, 4]]})
    assert line.count(b"\n") == 1
    assert line.endswith(b"}\n")


def test_a_full_disk_costs_one_warning_and_the_loss_is_said_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    log = RunLogWriter(path)
    real = os.write
    full = True

    def write(file: int, data: bytes) -> int:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data)

    monkeypatch.setattr(os, "write", write)
    with caplog.at_level(logging.WARNING):
        assert [log.write({"kind": "step", "step": n}) for n in (1, 2)] == [False, False]
    assert len(caplog.records) == 1
    full = False
    assert log.write({"kind": "step", "step": 3})
    lost, step = records(path)
    assert (lost["event"], lost["values"]) == ("lost_records", {"count": 2})
    assert step["step"] == 3


def test_half_a_line_on_a_full_disk_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    log = RunLogWriter(path)
    log.write({"kind": "step", "step": 1})
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[: len(data) // 2]))
    assert not log.write({"kind": "step", "step": 2})
    assert [record["step"] for record in records(path)] == [1]


def test_a_folder_that_vanished_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    log = RunLogWriter(path)
    log.write({"kind": "step", "step": 1})
    shutil.rmtree(path.parent)
    assert log.write({"kind": "step", "step": 2})
    assert [record["step"] for record in records(path)] == [2]
