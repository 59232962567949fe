"""What is judged beside the training is what a reader finds in the file afterwards."""

import logging
import math
import random
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.diagnosis import Diagnosis
from microscope_tui.lines import snapshot_text
from microscope_tui.report import check_format, judge, verdict_text
from microscope_tui.report import format_text as format_report
from microscope_tui.report.check import exit_code
from microscope_tui.runlog import RunFile, RunReader, StepEntry, find_runs, glance
from tests.probe.replay import (
    EVEN,
    HEADER,
    collapsing,
    events,
    open_recorder,
    records_of,
    replay,
    step,
    told_by,
    watch,
)

SICK = (
    *("collapse", "early-collapse", "dead-experts", "divergence", "overflow", "bias-limit-cycle"),
    *("nan", "padding", "lint-no-balance"),
)
NEEDS_ALL_COUNTS = ("bias-limit-cycle",)
WORDS = {0: "healthy", 1: "WARNING", 2: "CRITICAL", 3: "NO VERDICT"}


@pytest.mark.parametrize("counts_every", [1, 10])
@pytest.mark.parametrize("scenario", ["healthy", *SICK])
def test_alerts_are_what_the_diagnosis_of_the_written_file_says(
    scenario: str, counts_every: int, tmp_path: Path
) -> None:
    header, *records = records_of(scenario, 4, 600)
    recorder = open_recorder(tmp_path, header, counts_every=counts_every)
    alerts = list(replay(recorder, records))
    recorder.close(step=600, reason="finished")
    read = watch(tmp_path)
    assert read.defects.count == 0
    assert read.diagnosis is not None
    known = told_by(read.diagnosis)
    assert {(a.step, a.rule, layer) for a in alerts for layer in a.layers or (None,)} == {
        (at, rule, router) for at, rule, _, router, _ in known
    }
    for alert in alerts:
        same = [k for k in known if k[:2] == (alert.step, alert.rule)]
        mine = [k for k in same if k[3] in (alert.layers or (None,))]
        assert (alert.severity, alert.onset) in {(k[2], k[4]) for k in mine}
        assert alert.onset == min(k[4] for k in mine)
    assert bool(alerts) == (
        scenario in SICK and (counts_every == 1 or scenario not in NEEDS_ALL_COUNTS)
    )


@pytest.mark.parametrize("scenario", ["healthy", "divergence", "overflow", "shock", "padding"])
def test_the_verdict_is_that_of_check(scenario: str, tmp_path: Path) -> None:
    header, *records = records_of(scenario, 4, 600)
    recorder = open_recorder(tmp_path, header)
    for _ in replay(recorder, records):
        pass
    recorder.close(step=600, reason="finished")
    verdict = recorder.verdict()
    judged = judge(RunFile("run", tmp_path / "run" / "metrics.jsonl", 0.0))
    assert verdict.startswith(WORDS[judged.exit_code])
    said = verdict_text(judged)
    for line in verdict.splitlines():
        assert line == "healthy" or line.split(": ", 1)[1] in said


def test_a_sound_router_that_collapsed_comes_before_a_faulty_meter(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, HEADER)
    records = collapsing(1, 300, layers=(3,))
    for record in records[99:]:
        record["tokens_per_expert"] = [[2 * n for n in EVEN], *record["tokens_per_expert"][1:]]
    list(replay(recorder, records))
    first, second = recorder.verdict().splitlines()
    assert first == "CRITICAL COLLAPSE: Router collapse in L3 since step 200"
    assert second.startswith("NO VERDICT METER: Meter fault in L1 since step ")
    assert judge(RunFile("run", tmp_path / "run" / "metrics.jsonl", 0.0)).exit_code == 2


def test_a_meter_fault_that_is_over_is_a_warning(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, HEADER)
    records = collapsing(1, 300, layers=())
    for record in records[99:150]:
        record["loss"] = math.nan
    list(replay(recorder, records))
    assert recorder.verdict().startswith("WARNING METER: Meter fault from step 100 to 151")
    assert judge(RunFile("run", tmp_path / "run" / "metrics.jsonl", 0.0)).exit_code == 1


def test_of_a_step_that_is_recorded_twice_the_first_one_is_judged(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, HEADER)
    twice = [
        r for pair in zip(collapsing(1, 300), collapsing(1, 300, at=1), strict=True) for r in pair
    ]
    (alert,) = [a for a in replay(recorder, twice) if a.rule == "COLLAPSE"]
    read = watch(tmp_path).diagnosis
    assert read is not None
    assert (alert.step, "COLLAPSE", "crit", "L3", 200) in told_by(read)
    assert alert.onset == 200


def test_routers_without_a_choice_have_no_verdict(tmp_path: Path) -> None:
    dense = HEADER | {"model": HEADER["model"] | {"top_k": 8}}
    recorder = open_recorder(tmp_path, dense)
    assert recorder.verdict() == "NO VERDICT: no step was judged"
    list(replay(recorder, [step(n, [[2048] * 8] * 4) for n in range(1, 5)]))
    assert recorder.verdict().startswith("NO VERDICT: no router has more experts")
    assert judge(RunFile("run", tmp_path / "run" / "metrics.jsonl", 0.0)).exit_code == 3


def test_a_dump_with_few_assignments_is_not_judged_in_the_trainer_either(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, HEADER | {"profile": "eval", "planned_steps": 1})
    list(replay(recorder, [step(1, [[9, 11, 8, 12, 10, 10, 11, 9]] * 4, tokens=40)]))
    assert recorder.verdict().endswith("has 10 assignments per expert in this dump, needs 56")
    read = judge(RunFile("run", tmp_path / "run" / "metrics.jsonl", 0.0))
    assert (read.exit_code, read.problem) == (3, recorder.verdict())


def odd_steps() -> list[dict[str, Any]]:
    """Numbers of all sizes, rows without a bias, readings that are missing or not finite."""
    rng = random.Random(0)
    made = []
    for number in range(1, 25):
        rows = [[rng.randrange(10 ** rng.randrange(1, 9)) for _ in range(8)] for _ in range(4)]
        biases = [[rng.gauss(0, 10.0 ** rng.randrange(-9, 6)) for _ in row] for row in rows]
        biases[number % 4] = [] if number % 3 else [math.nan, -math.inf, 0.0, 1.0] * 2
        made.append(
            step(
                number,
                rows,
                loss=rng.choice([math.nan, math.inf, 1 / 3, 1e-300]),
                losses={"aux": 1 / 3} if number % 2 else None,
                tokens=rng.choice([0, 2048, 10**17]),
                grad_norm=rng.choice([None, math.inf, 2 / 3]),
                expert_bias=biases if number % 5 else None,
                router={"entropy": [1 / 3, None, math.nan, 2.0], "tokens": [1, 2, 3, 2**60]},
            )
        )
    return made


@pytest.mark.parametrize("counts_every", [1, 4])
def test_every_number_is_judged_as_it_is_read(
    counts_every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[Any] = []

    def look(_: object, record: Any, counts: Any, biases: Any) -> list[Any]:
        rows = [(counts(index) or None, biases(index) or None) for index in range(4)]
        judged.append(repr((record, rows)))
        return []

    monkeypatch.setattr(Diagnosis, "observe", look)
    recorder = open_recorder(tmp_path, HEADER, counts_every=counts_every)
    list(replay(recorder, odd_steps()))
    data = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    read = [
        repr((entry.record, [(entry.counts(i), entry.biases(i)) for i in range(4)]))
        for entry in RunReader("run").feed(data)
        if isinstance(entry, StepEntry)
    ]
    assert judged == read


def test_readings_that_are_not_finite_are_judged_as_they_are_read(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, HEADER)
    records = collapsing(1, 60, layers=())
    for record in records[39:]:
        record |= {"loss": math.nan, "expert_bias": [[math.nan] * 8] * 4}
    (alert,) = [a for a in replay(recorder, records) if a.rule == "METER"]
    assert (alert.severity, alert.layers, alert.onset) == ("error", (), 40)
    read = watch(tmp_path).diagnosis
    assert read is not None
    assert (alert.step, "METER", "error", None, 40) in told_by(read)
    assert recorder.verdict().startswith("NO VERDICT METER: Meter fault since step 40")
    assert exit_code(read.findings()) == 3


def test_every_reader_takes_the_alerts_in_a_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    recorder = open_recorder(tmp_path, HEADER)
    alerts = list(replay(recorder, collapsing(1, 300)))
    recorder.close(step=300, reason="collapse")
    path = tmp_path / "run" / "metrics.jsonl"
    assert sum(r.get("event") == "alert" for r in events(tmp_path)) == len(alerts) > 0
    assert format_report(check_format(path)).endswith("; no problems")
    assert [run.path for run in find_runs(tmp_path)] == [path]
    looked = glance(path)
    assert (looked.error, looked.last and looked.last.step) == (None, 300)
    assert looked.end is not None
    assert looked.end.reason == "collapse"
    read = watch(tmp_path)
    assert (read.defects.count, read.state()[0]) == (0, "stopped")
    assert "Router collapse in L3" in verdict_text(judge(RunFile("run", path, 0.0)))
    assert "L3" in snapshot_text(read, 100, 30)
