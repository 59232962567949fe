"""The log of a training loop: whatever fails in it costs one warning; other ranks have none."""

import logging
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.probe import RunRecorder, TrainingLog
from tests.probe.replay import HEADER, collapsing
from tests.probe.test_bad_days import written

CALLS: dict[str, tuple[Any, ...]] = {
    "step": ({"step": 1, "loss": 2.0, "tokens": 2048, "tokens_per_expert": [[512] * 8] * 4},),
    "event": (1, "eval", {"loss": 2.0}),
    "alerts": (),
    "judgement": (),
    "verdict": (),
    "sync": (),
    "end": (1, "finished"),
}


def recorder(folder: Path) -> RunRecorder:
    return RunRecorder(folder / "run", **HEADER)


def test_all_is_handed_on_to_the_recorder(tmp_path: Path) -> None:
    said: list[str] = []
    log = TrainingLog(recorder(tmp_path), said.append)
    indices = None
    for fields in collapsing(1, 260):
        indices = log.step({k: v for k, v in fields.items() if k != "kind"})
    assert indices is not None
    assert [round(c, 2) for c in indices if c is not None] == [1.0, 1.0, 0.0, 1.0]
    assert [a.rule for a in log.alerts() if a.is_collapse] == ["COLLAPSE"]
    log.event(260, "eval", {"loss": 2.5})
    assert log.sync()
    assert log.judgement()
    assert log.verdict().startswith("CRITICAL COLLAPSE")
    log.end(260, "collapse")
    evaluation, end = written(tmp_path)[-2:]
    assert (evaluation["event"], evaluation["values"]) == ("eval", {"loss": 2.5})
    assert (end["event"], end["reason"], end["step"]) == ("end", "collapse", 260)
    assert said == []


def test_whatever_fails_is_said_once_and_the_next_call_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    log = TrainingLog(recorder(tmp_path), said.append)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("disk on fire")

    with monkeypatch.context() as patch:
        for name in RunRecorder.__dict__:
            if not name.startswith("_"):
                patch.setattr(RunRecorder, name, fail)
        answers = {name: getattr(log, name)(*arguments) for name, arguments in CALLS.items()}
    assert answers == {
        **dict.fromkeys(("step", "event", "judgement", "end")),
        **{"alerts": [], "verdict": "", "sync": False},
    }
    (message,) = said
    assert message == "the run log has a gap, training continues: RuntimeError('disk on fire')"
    assert log.step(*CALLS["step"]) is not None
    assert log.sync()
    assert written(tmp_path)[-1]["step"] == 1


def test_a_record_that_makes_no_sense_costs_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    log = TrainingLog(recorder(tmp_path))
    (record,) = CALLS["step"]
    assert log.step(record | {"tokens_per_expert": [[1] * 8]}) is None
    assert log.step({}) is None
    assert log.step(record) is not None
    assert ["the run log has a gap" in message for message in caplog.messages] == [True]
    assert log.sync()
    assert [r["kind"] for r in written(tmp_path) if r["kind"] != "event"] == ["run", "step"]


def test_a_training_is_not_hindered_in_being_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunRecorder, "record_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        TrainingLog(recorder(tmp_path)).step(*CALLS["step"])


def test_a_silent_log_takes_the_same_calls_and_says_nothing() -> None:
    log = TrainingLog(None)
    answers = {name: getattr(log, name)(*arguments) for name, arguments in CALLS.items()}
    assert answers == {
        **dict.fromkeys(("step", "event", "judgement", "end")),
        **{"alerts": [], "verdict": "", "sync": True},
    }
