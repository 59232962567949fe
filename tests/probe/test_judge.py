"""The trainer notices by itself what the reader of its log will find, and forgets nothing."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from microscope_tui.diagnosis import Diagnosis
from microscope_tui.probe import Alert, RunJudge
from tests.probe.replay import (
    EVEN,
    HEADER,
    collapsing,
    events,
    open_recorder,
    records_of,
    replay,
    step,
)


def test_a_forced_collapse_is_one_critical_alert_and_stands_right_after_its_step(
    tmp_path: Path,
) -> None:
    recorder = open_recorder(tmp_path, HEADER)
    alerts = list(replay(recorder, collapsing(1, 300)))
    (alert,) = [a for a in alerts if a.rule == "COLLAPSE"]
    assert (alert.severity, alert.layers, alert.onset) == ("crit", ("L3",), 200)
    assert alert.is_collapse
    assert 200 <= alert.step <= 230
    assert alert.verdict == "Router collapse in L3 since step 200"
    assert recorder.verdict().startswith("CRITICAL COLLAPSE: Router collapse in L3 since step 200")
    written = events(tmp_path)
    at = next(i for i, r in enumerate(written) if r.get("values", {}).get("rule") == "COLLAPSE")
    before = [r for r in written[:at] if r["kind"] == "step"][-1]
    assert {r["kind"] for r in written[written.index(before) + 1 : at + 1]} == {"event"}
    assert written[at].pop("time") == before["time"]
    assert written[at] == {
        "kind": "event",
        "step": alert.step,
        "event": "alert",
        "values": {
            "rule": "COLLAPSE",
            "severity": "crit",
            "layers": ["L3"],
            "onset": 200,
            "verdict": alert.verdict,
        },
    }


def test_in_the_warm_up_the_verdict_is_not_healthy(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, HEADER)
    list(replay(recorder, collapsing(1, 30, at=1)))
    assert recorder.verdict() == "not judged yet (warm-up until step 100)"
    list(replay(recorder, collapsing(31, 110, at=999)))
    assert recorder.verdict() == "healthy"


def test_before_an_alarm_the_evidence_can_be_asked_for(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, HEADER)
    list(replay(recorder, collapsing(1, 212)))
    evidence = recorder.ask(lambda judge: judge.evidence([0.9, 0.9, 0.0, 0.9]))
    assert evidence == "L3 at .00 for 13 steps, gathering evidence"


def test_layers_that_fall_together_are_one_alert(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, HEADER)
    alerts = list(replay(recorder, collapsing(1, 300, layers=(4, 1, 3))))
    (alert,) = [a for a in alerts if a.rule == "COLLAPSE"]
    assert alert.layers == ("L1", "L3", "L4")


def test_alerts_are_told_once_and_kept_until_somebody_asks(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, HEADER)
    for record in collapsing(1, 300):
        recorder.record_step(**{k: v for k, v in record.items() if k != "kind"})
    assert [a.rule for a in recorder.alerts() if a.is_collapse] == ["COLLAPSE"]
    assert recorder.alerts() == []


@settings(max_examples=12, deadline=None, phases=[Phase.generate])  # a step costs; no shrinking
@given(st.sampled_from(["collapse", "divergence", "dead-experts"]), st.integers(1, 399))
def test_an_interrupted_run_is_judged_as_if_it_had_never_stopped(
    tmp_path_factory: pytest.TempPathFactory, scenario: str, cut: int
) -> None:
    header, *records = records_of(scenario, 3, 400)
    # A trainer saves the state first, and then writes that there is a checkpoint.
    checkpoint = {"kind": "event", "event": "checkpoint", "step": cut}
    before = [r for r in records if r["step"] <= cut and r["kind"] == "step"]
    after = [r for r in records if r["step"] > cut and r["kind"] == "step"]

    whole = open_recorder(tmp_path_factory.mktemp("whole"), header)
    uninterrupted = list(replay(whole, [*before, checkpoint, *after]))

    folder = tmp_path_factory.mktemp("cut")
    first = open_recorder(folder, header)
    told = list(replay(first, before))
    state = first.judgement()
    resumed_at = {"resumed_at_step": cut + 1, "judgement": state}
    second = open_recorder(folder, header, **resumed_at)
    told += replay(second, after)

    assert [asdict(a) for a in told] == [asdict(a) for a in uninterrupted]
    assert second.judgement() == whole.judgement()
    assert second.verdict() == whole.verdict()


def test_a_state_of_a_later_step_than_the_weights_is_taken_back(tmp_path: Path) -> None:
    first = open_recorder(tmp_path, HEADER)
    assert [a.rule for a in replay(first, collapsing(1, 300)) if a.is_collapse] == ["COLLAPSE"]
    again = open_recorder(tmp_path, HEADER, resumed_at_step=180, judgement=first.judgement())
    assert again.verdict() == "healthy"
    assert list(replay(again, collapsing(180, 400, layers=()))) == []


def test_settings_that_a_resume_changes_are_judged_anew(tmp_path: Path) -> None:
    first = open_recorder(tmp_path, HEADER)
    list(replay(first, collapsing(1, 50)))
    changed = HEADER | {"balance": {"method": "none"}}
    second = open_recorder(tmp_path, changed, resumed_at_step=51, judgement=first.judgement())
    alerts = list(replay(second, collapsing(51, 60)))
    assert [(a.rule, a.step, a.layers, a.severity) for a in alerts] == [("LINT", 51, (), "warn")]


def test_the_checkpoint_that_a_run_goes_on_from_is_the_one_to_go_back_to(tmp_path: Path) -> None:
    first = open_recorder(tmp_path, HEADER)
    list(replay(first, collapsing(1, 150)))
    second = open_recorder(
        tmp_path, HEADER, resumed_at_step=151, judgement=first.judgement(), world_size=4
    )
    (alert,) = [a for a in replay(second, collapsing(151, 300)) if a.is_collapse]
    assert "a checkpoint was written at 150" in alert.next
    heads = [
        json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_bytes().splitlines()
    ]
    assert [r["world_size"] for r in heads if r["kind"] == "run"] == [1, 4]


@pytest.mark.parametrize("damage", ["cut", "another model", "noise", "empty"])
def test_a_state_that_does_not_fit_costs_a_warning_and_the_judgement_starts_anew(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = HEADER["model"] | ({"layers": [1, 2, 3, 5]} if damage == "another model" else {})
    first = open_recorder(tmp_path / "first", HEADER | {"model": model})
    list(replay(first, collapsing(1, 120)))
    state = first.judgement()
    assert state is not None
    state = {"cut": state[:-9], "noise": b"\xc1" * 40, "empty": b""}.get(damage, state)
    second = open_recorder(tmp_path / "second", HEADER, resumed_at_step=121, judgement=state)
    (said,) = caplog.messages
    assert "the saved state of the judge cannot be used, it starts anew" in said
    (alert,) = [a for a in replay(second, collapsing(121, 400, at=300)) if a.is_collapse]
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


def test_a_failing_judge_costs_one_warning_and_the_log_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = open_recorder(tmp_path, HEADER)
    list(replay(recorder, collapsing(1, 5)))

    def fail(*_: object) -> None:
        raise ZeroDivisionError("of course")

    monkeypatch.setattr(Diagnosis, "observe", fail)
    assert list(replay(recorder, collapsing(6, 300))) == []
    recorder.record_event(step=300, event="checkpoint")
    assert recorder.judgement() is None
    assert recorder.verdict().startswith("NO VERDICT")
    recorder.close(step=300, reason="finished")
    (said,) = caplog.messages
    assert "is no longer judged: ZeroDivisionError('of course'); training continues" in said
    assert [r["step"] for r in events(tmp_path) if r["kind"] == "step"] == list(range(1, 301))


def test_a_header_that_cannot_be_judged_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match="the header cannot be judged"):
        RunJudge(b'{"kind":"run","format_version":1,"model":{}}\n')
    recorder = open_recorder(tmp_path, HEADER | {"model": HEADER["model"] | {"layers": []}})
    assert caplog.messages == []
    assert recorder.judgement() is not None


def test_without_a_judge_nothing_is_judged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = open_recorder(tmp_path, HEADER, judge=False)
    assert list(replay(recorder, collapsing(1, 300))) == []
    assert recorder.judgement() is None
    assert recorder.verdict().startswith("NO VERDICT")
    assert {r["kind"] for r in events(tmp_path)} == {"step"}
    assert caplog.messages == []


def test_an_alert_is_what_it_is_called() -> None:
    told = {"step": 1, "layers": (), "onset": 1, "verdict": "", "why": "", "next": ""}
    assert Alert(rule="COLLAPSE", severity="crit", **told).is_collapse
    assert not Alert(rule="COLLAPSE", severity="warn", **told).is_collapse
    assert not Alert(rule="DEAD", severity="crit", **told).is_collapse
