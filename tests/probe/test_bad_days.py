"""Full disks, vanished folders, clocks that go back: the training and its diagnosis continue."""

import errno
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.probe import Alert, RunRecorder
from microscope_tui.report import check_format, format_text
from tests.probe.replay import HEADER, collapsing, told_by, watch

Fields = dict[str, Any]


def make(folder: Path) -> RunRecorder:
    return RunRecorder(folder / "run", **HEADER)


def record(recorder: RunRecorder, first: int, last: int) -> list[Alert]:
    """Steps of a run whose third router collapses at 200; what is alarmed about meanwhile."""
    for fields in collapsing(first, last):
        indices = recorder.record_step(**{k: v for k, v in fields.items() if k != "kind"})
        assert len(indices) == 4
    return recorder.alerts()


def written(folder: Path) -> list[Fields]:
    return [json.loads(line) for line in (folder / "run/metrics.jsonl").read_bytes().splitlines()]


def steps(folder: Path) -> list[int]:
    return [r["step"] for r in written(folder) if r["kind"] == "step"]


def test_a_full_disk_costs_lines_and_one_warning_but_no_alarm(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = make(tmp_path)
    record(recorder, 1, 150)
    assert recorder.sync()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        patch.setattr("microscope_tui.runlog.writer.RETRY_S", 0.0)
        alerts = record(recorder, 151, 260)
        recorder.sync()  # what waits is lost before the disk has room again
    assert [(a.layers, a.onset) for a in alerts if a.is_collapse] == [(("L3",), 200)]
    assert ["No space left" in message for message in caplog.messages] == [True]
    assert record(recorder, 261, 300) == []
    recorder.close(step=300, reason="finished")
    assert steps(tmp_path) == [*range(1, 151), *range(261, 301)]
    (lost,) = [r for r in written(tmp_path) if r.get("event") == "lost_records"]
    assert lost["values"]["count"] == 110 + len(alerts)
    assert recorder.verdict().startswith("CRITICAL COLLAPSE")
    assert format_text(check_format(tmp_path / "run")).endswith("; no problems")


def test_a_log_folder_that_is_deleted_comes_back_with_its_header(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = make(tmp_path)
    record(recorder, 1, 150)
    assert recorder.sync()
    shutil.rmtree(tmp_path / "run")
    alerts = record(recorder, 151, 260)
    recorder.close(step=260, reason="finished")
    assert [a.onset for a in alerts if a.is_collapse] == [200]
    head, first, *_ = written(tmp_path)
    assert (head["kind"], head["model"], first["step"]) == ("run", HEADER["model"], 151)
    assert steps(tmp_path) == list(range(151, 261))
    assert [r["values"]["onset"] for r in written(tmp_path) if r.get("event") == "alert"] == [200]
    assert caplog.messages == []


def test_a_folder_that_cannot_be_made_again_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = make(tmp_path)
    record(recorder, 1, 150)
    assert recorder.sync()
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").write_text("a file in its place")
    alerts = record(recorder, 151, 260)
    recorder.close(step=260, reason="finished")
    assert [a.onset for a in alerts if a.is_collapse] == [200]
    assert "cannot be written" in caplog.messages[0]
    assert (tmp_path / "run").read_text() == "a file in its place"


def test_a_clock_that_goes_back_is_written_as_it_is_and_changes_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steady = make(tmp_path / "steady")
    alerts = record(steady, 1, 300)
    now = iter(range(2_000_000_000, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    back = make(tmp_path / "back")
    assert record(back, 1, 300) == alerts
    back.close(step=300, reason="finished")
    times = [r["time"] for r in written(tmp_path / "back")]
    assert times[0] == 2_000_000_000
    assert times == sorted(times, reverse=True)
    read = watch(tmp_path / "back")
    assert (read.defects.count, read.latest.record.step if read.latest else 0) == (0, 300)
    assert read.diagnosis is not None
    assert {k[:2] for k in told_by(read.diagnosis)} == {(a.step, a.rule) for a in alerts}
    problems = format_text(check_format(tmp_path / "back" / "run"))
    assert "0 errors" in problems


def test_an_unwritable_folder_is_said_before_the_run_begins(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file in its place")
    with pytest.raises(OSError, match="run"):
        make(tmp_path)
