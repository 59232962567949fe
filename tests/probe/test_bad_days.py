"""Full disks, folders of others, clocks that go back: the training and its diagnosis continue.

Whatever else fails in a ``TrainingLog`` costs one warning; other ranks have no log.
"""

import errno
import os
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from microscope_tui.commands.check.format_check import check_format, format_text
from microscope_tui.probe import RunRecorder, TrainingLog
from tests.probe.layers import records
from tests.probe.replay import collapsing, episodes_of, open_recorder, replay, watch, written


def test_a_full_disk_costs_lines_and_one_warning_but_no_alert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = open_recorder(tmp_path)
    replay(recorder, collapsing(1, 150))
    full = mock.Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        patch.setattr("microscope_tui.runlog.writer.RETRY_S", 0.0)
        alerts = replay(recorder, collapsing(151, 260))  # lost before the disk has room again
    assert [(a.layers, a.onset) for a in alerts if a.is_collapse] == [(("L3",), 200)]
    (message,) = caplog.messages
    assert "No space left" in message
    assert str(tmp_path / "run" / "metrics.jsonl") in message
    assert replay(recorder, collapsing(261, 300)) == []
    recorder.close(step=300, reason="finished")
    steps = [line["step"] for line in records(tmp_path / "run")]
    assert steps == [*range(1, 151), *range(261, 301)]
    events = records(tmp_path / "run", "event")
    (lost,) = [event for event in events if event["event"] == "lost_records"]
    assert lost["values"]["count"] == 110 + len(alerts)
    assert recorder.verdict().startswith("CRITICAL cause: ")
    assert format_text(check_format(tmp_path / "run")).endswith("; no problems")


def test_a_clock_that_goes_back_is_written_as_it_is_and_changes_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alerts = replay(open_recorder(tmp_path / "steady"), collapsing(1, 230))
    now = iter(range(2_000_000_000, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    back = open_recorder(tmp_path / "back")
    assert replay(back, collapsing(1, 230)) == alerts
    back.close(step=230, reason="finished")
    times = [line["time"] for line in written(tmp_path / "back")]
    assert times[0] == 2_000_000_000
    assert times == sorted(times, reverse=True)
    read = watch(tmp_path / "back")
    assert (read.defects.count, read.latest.record.step if read.latest else 0) == (0, 230)
    assert {k[:2] for k in episodes_of(read.diagnosis)} == {(a.step, a.rule) for a in alerts}
    assert format_text(check_format(tmp_path / "back" / "run")).endswith("; no problems")


STEP = {"step": 1, "loss": 2.0, "tokens": 2048, "tokens_per_expert": [[512] * 8] * 4}
CALLS: dict[str, tuple[Any, ...]] = {
    "step": (STEP,),
    "event": (1, "eval", {"loss": 2.0}),
    "alerts": (),
    "judgement": (),
    "verdict": (),
    "collapsed": (),
    "collapse_onset": (),
    "sync": (),
    "end": (1, "finished"),
}
NO_ANSWERS = {
    **dict.fromkeys(("step", "event", "judgement", "collapse_onset", "end")),
    **{"alerts": [], "verdict": "", "collapsed": (), "sync": False},
}


def answers(log: TrainingLog) -> dict[str, Any]:
    return {name: getattr(log, name)(*arguments) for name, arguments in CALLS.items()}


def test_all_is_passed_on_to_the_recorder(tmp_path: Path) -> None:
    warnings: list[str] = []
    log = TrainingLog(open_recorder(tmp_path), warnings.append)
    steps = [{k: v for k, v in fields.items() if k != "kind"} for fields in collapsing(1, 230)]
    for fields in steps[:212]:
        indices = log.step(fields)
    assert [round(c, 2) for c in indices if c is not None] == [1.0, 1.0, 0.0, 1.0]
    for fields in steps[212:]:
        log.step(fields)
    assert [a.rule for a in log.alerts() if a.is_collapse] == ["COLLAPSE"]
    assert log.alerts() == []  # each one once
    assert (log.collapsed(), log.collapse_onset()) == (("L3",), 200)
    log.event(230, "eval", {"loss": 2.5})
    assert log.sync()
    assert log.judgement()
    assert log.verdict().startswith("CRITICAL cause: ")
    log.end(230, "collapse")
    evaluation, end = written(tmp_path)[-2:]
    assert (evaluation["event"], evaluation["values"]) == ("eval", {"loss": 2.5})
    assert (end["event"], end["reason"], end["step"]) == ("end", "collapse", 230)
    assert warnings == []


def test_a_failure_is_reported_once_and_the_next_call_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    log = TrainingLog(open_recorder(tmp_path), warnings.append)
    fail = mock.Mock(side_effect=RuntimeError("disk on fire"))
    with monkeypatch.context() as patch:
        for name in RunRecorder.__dict__:
            if not name.startswith("_"):
                patch.setattr(RunRecorder, name, fail)
        assert answers(log) == NO_ANSWERS
    (message,) = warnings
    assert message == "the run log has a gap, training continues: RuntimeError('disk on fire')"
    assert log.step(STEP) is not None
    assert log.sync()
    assert written(tmp_path)[-1]["step"] == 1


def test_a_warning_that_fails_is_not_raised_and_ctrl_c_is(tmp_path: Path, monkeypatch: Any) -> None:
    log = TrainingLog(open_recorder(tmp_path), mock.Mock(side_effect=RuntimeError))
    assert log.step({}) is None
    monkeypatch.setattr(RunRecorder, "record_step", mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        log.step(STEP)


def test_without_a_recorder_the_same_calls_do_nothing() -> None:
    assert answers(TrainingLog(None)) == NO_ANSWERS | {"sync": True}
