"""The trainer notices by itself what the reader of its log will find, and forgets nothing."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.diagnosis import Diagnosis
from microscope_tui.probe.judge import Alert, RunJudge
from tests.probe import replay as replays
from tests.probe.layers import records
from tests.probe.replay import EVEN, HEADER, collapsing, open_recorder, replay, step, written


def test_a_forced_collapse_is_one_critical_alert_right_after_its_step(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path)
    alerts = replay(recorder, collapsing(1, 300))
    (alert,) = [a for a in alerts if a.rule == "COLLAPSE"]
    assert (alert.severity, alert.layers, alert.onset) == ("crit", ("L3",), 200)
    assert alert.is_collapse
    assert 200 <= alert.step <= 230
    assert alert.verdict == "Router collapse in L3 since step 200"
    assert recorder.verdict().endswith("CRITICAL COLLAPSE: Router collapse in L3 since step 200")
    lines = written(tmp_path)
    at = next(i for i, r in enumerate(lines) if r.get("values", {}).get("rule") == "COLLAPSE")
    before = max(i for i, r in enumerate(lines[:at]) if r["kind"] == "step")
    assert {r["kind"] for r in lines[before + 1 : at + 1]} == {"event"}
    values = {"rule": "COLLAPSE", "severity": "crit", "layers": ["L3"], "onset": 200}
    values["verdict"] = alert.verdict
    event = {"kind": "event", "step": alert.step, "time": lines[before]["time"]}
    assert lines[at] == event | {"event": "alert", "values": values}


def test_layers_that_fall_together_are_one_alert(tmp_path: Path) -> None:
    alerts = replay(open_recorder(tmp_path), collapsing(1, 230, layers=(4, 1, 3)))
    assert [a.layers for a in alerts if a.is_collapse] == [("L1", "L3", "L4")]


@pytest.mark.parametrize(
    ("scenario", "cut"),
    [("collapse", 1), ("collapse", 195), ("divergence", 310), ("dead-experts", 180)],
)
def test_an_interrupted_run_is_judged_like_a_whole(scenario: str, cut: int, tmp_path: Path) -> None:
    """Cut before, within and after the evidence for alerts."""
    header, *steps_and_events = replays.records_of(scenario)
    steps = [r for r in steps_and_events if r["kind"] == "step"]
    # A trainer saves the state first, and then writes that there is a checkpoint.
    checkpoint = {"kind": "event", "event": "checkpoint", "step": cut}
    whole = open_recorder(tmp_path / "whole", header)
    uninterrupted = replay(whole, [*steps[:cut], checkpoint, *steps[cut:]])

    first = open_recorder(tmp_path / "cut", header)
    alerts = replay(first, steps[:cut])
    state = first.judgement()
    second = open_recorder(tmp_path / "cut", header, resumed_at_step=cut + 1, judgement=state)
    alerts += replay(second, steps[cut:])

    assert [asdict(a) for a in alerts] == [asdict(a) for a in uninterrupted]
    assert second.judgement() == whole.judgement()
    assert second.verdict() == whole.verdict()


def test_a_state_of_a_later_step_than_the_weights_is_taken_back(tmp_path: Path) -> None:
    first = open_recorder(tmp_path)
    assert [a.rule for a in replay(first, collapsing(1, 230)) if a.is_collapse] == ["COLLAPSE"]
    again = open_recorder(tmp_path, resumed_at_step=180, judgement=first.judgement())
    assert again.verdict() == "healthy"
    assert replay(again, collapsing(180, 400, layers=())) == []


def test_settings_that_a_resume_changes_are_judged_anew(tmp_path: Path) -> None:
    first = open_recorder(tmp_path)
    replay(first, collapsing(1, 50))
    changed = HEADER | {"balance": {"method": "none"}}
    second = open_recorder(tmp_path, changed, resumed_at_step=51, judgement=first.judgement())
    alerts = replay(second, collapsing(51, 60))
    assert [(a.rule, a.step, a.layers, a.severity) for a in alerts] == [("LINT", 51, (), "warn")]


def test_the_checkpoint_of_a_resumed_run_is_the_one_to_go_back_to(tmp_path: Path) -> None:
    first = open_recorder(tmp_path)
    replay(first, collapsing(1, 150))
    state = first.judgement()
    second = open_recorder(tmp_path, resumed_at_step=151, judgement=state, world_size=4)
    (alert,) = [a for a in replay(second, collapsing(151, 230)) if a.is_collapse]
    assert "a checkpoint was written at 150" in alert.next
    assert [run["world_size"] for run in records(tmp_path / "run", "run")] == [1, 4]


@pytest.mark.parametrize("damage", ["cut", "another model", "noise", "empty"])
def test_a_state_that_does_not_fit_costs_a_warning_and_the_judge_starts_anew(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = HEADER["model"] | ({"layers": [1, 2, 3, 5]} if damage == "another model" else {})
    first = open_recorder(tmp_path / "first", HEADER | {"model": model})
    replay(first, collapsing(1, 120))
    state = first.judgement()
    assert state is not None
    state = {"cut": state[:-9], "noise": b"\xc1" * 40, "empty": b""}.get(damage, state)
    second = open_recorder(tmp_path / "second", resumed_at_step=121, judgement=state)
    (message,) = caplog.messages
    assert "the saved state of the judge cannot be used, it starts anew" in message
    (alert,) = [a for a in replay(second, collapsing(121, 330, at=300)) if a.is_collapse]
    assert 300 <= alert.step <= 330
    assert "(judged from step 121 on)" in second.verdict()


def test_a_run_resumed_without_a_state_has_its_time_to_settle(tmp_path: Path) -> None:
    uneven = [1800, 1700, 200, 150, 100, 60, 50, 36]
    header = HEADER | {"planned_steps": 1000}

    def settling(until: int) -> list[Any]:
        return [step(n, [uneven if n < until else EVEN] * 4) for n in range(501, 700)]

    calm = open_recorder(tmp_path / "calm", header, resumed_at_step=501)
    assert [a.rule for a in replay(calm, settling(560)) if a.severity != "info"] == []
    loud = open_recorder(tmp_path / "loud", header, resumed_at_step=501)
    assert "COLLAPSE" in {a.rule for a in replay(loud, settling(700))}


@pytest.mark.parametrize(
    ("broken", "warnings"),
    [
        ("observe", ["is no longer judged: ZeroDivisionError('of course'); training continues"]),
        ("__init__", ["the run is not judged while it trains: ZeroDivisionError('of course')"]),
        (None, []),  # switched off
    ],
)
def test_without_a_working_judge_there_is_one_warning_and_the_log_continues(
    broken: str | None, warnings: list[str], tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("of course")

    if broken is not None:
        monkeypatch.setattr(Diagnosis, broken, fail)
    recorder = open_recorder(tmp_path, judge=broken is not None)
    assert replay(recorder, collapsing(1, 230)) == []
    recorder.record_event(step=230, event="checkpoint")
    assert recorder.judgement() is None
    assert recorder.verdict().startswith("NO VERDICT")
    recorder.close(step=230, reason="finished")
    assert [r["step"] for r in written(tmp_path) if r["kind"] == "step"] == list(range(1, 231))
    assert all(r.get("event") != "alert" for r in written(tmp_path))
    for message, warning in zip(caplog.messages, warnings, strict=True):
        assert warning in message


def test_a_header_that_is_not_a_run_record_is_refused() -> None:
    with pytest.raises(ValueError, match="the header cannot be judged"):
        RunJudge(b'{"kind":"run","format_version":1,"model":{}}\n')


def test_only_a_critical_collapse_is_a_collapse() -> None:
    fields: dict[str, Any] = {"step": 1, "layers": (), "onset": 1}
    fields |= dict.fromkeys(("verdict", "why", "next"), "")
    for rule, severity, stops in (
        ("COLLAPSE", "crit", True),
        ("COLLAPSE", "warn", False),
        ("DEAD", "crit", False),
        ("DIVERGED", "crit", True),
        ("DIVERGED", "info", False),
    ):
        assert Alert(rule=rule, severity=severity, **fields).is_collapse == stops


def test_a_loss_that_is_lost_stops_as_a_collapse_does(tmp_path: Path) -> None:
    recorder, records = open_recorder(tmp_path), collapsing(1, 230, layers=())
    for record in records[199:]:
        record["loss"] = math.nan
    (alert,) = [a for a in replay(recorder, records) if a.is_collapse]
    assert (alert.rule, alert.step, alert.cause) == (
        "DIVERGED", 208, "diverged at 200: the loss is NaN"
    )  # fmt: skip
    assert recorder.with_judge(RunJudge.collapsed) == ("DIVERGED",)
    assert recorder.with_judge(RunJudge.collapse_onset) == 200
