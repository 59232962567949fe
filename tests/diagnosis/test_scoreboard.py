"""The scorer of the scoreboard on hand-made episodes: what counts as hit, miss and false alarm."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.scenarios import SCENARIOS
from benchmarks.scoreboard import results
from benchmarks.scoreboard.baselines import PERSISTENCE, WARM_UP, baselines
from benchmarks.scoreboard.judging import Fall, in_time
from benchmarks.scoreboard.plan import SHAPES, Case, cases, drawn
from benchmarks.scoreboard.results import RunScore, complete, load
from benchmarks.scoreboard.score import Outcome, false_alarms, outcomes, plain
from benchmarks.scoreboard.table import failures, show
from microscope_tui.diagnosis import Episode, Grade, Severity
from microscope_tui.runlog import RouterInfo, RouterSummary, RunRecord, StepRecord
from microscope_tui.scenarios import Expected, Truth

STEPS, ROUTERS = 1000, 4
COLLAPSE = Expected(rule="COLLAPSE", routers=(2,), onset=300, severity="crit", tolerance=40)
COLLAPSED = Truth(expected=(COLLAPSE,), allowed={"DEAD": "warn"})


def episode(rule: str = "COLLAPSE", router: int = 2, **changes: Any) -> Episode:
    """By default a right answer to ``COLLAPSE``: a warning at 320, critical from 350 on."""
    severity = changes.get("severity", Severity.CRITICAL)
    alarm = changes.setdefault("alarm", 320)
    changes.setdefault("onset", min(310, alarm))
    graded = [Grade(alarm, min(severity, Severity.WARN), 0.3), Grade(alarm + 30, severity, 0.1)]
    known = {"severity": severity, "last": STEPS, "value": 0.1, "limit": 0.35, "grades": graded}
    return Episode(rule=rule, router_index=router, **(known | changes))


def outcome(truth: Truth, *said: Episode) -> Outcome:
    """Of the first expected trouble."""
    return outcomes(truth, said, STEPS, ROUTERS)[0]


def test_a_hit_is_the_right_rule_in_the_right_layer() -> None:
    found = outcome(COLLAPSED, episode())
    assert found.hit
    assert found.placed
    assert found.dated
    assert (found.delay, found.critical_delay) == (20, 50)
    assert false_alarms(COLLAPSED, [episode()]) == []


def test_a_wrong_layer_is_a_miss_and_a_false_alarm() -> None:
    found = outcome(COLLAPSED, episode(router=1))
    assert found.named
    assert not found.placed
    assert found.missing == "layers"
    (alarm,) = false_alarms(COLLAPSED, [episode(router=1)])
    assert (alarm.rule, alarm.severity, alarm.router) == ("COLLAPSE", "crit", 1)


def test_one_of_two_layers_is_a_miss() -> None:
    both = Truth(expected=(Expected(rule="COLLAPSE", routers=(1, 2), onset=300),))
    assert outcome(both, episode()).missing == "layers"
    assert outcome(both, episode(), episode(router=1)).hit


def test_silence_and_too_mild_a_word_are_misses() -> None:
    assert outcome(COLLAPSED).missing == "silent"
    assert outcome(COLLAPSED, episode(severity=Severity.WARN)).missing == "severity"


def test_what_is_said_before_it_begins_is_a_false_alarm_and_no_answer() -> None:
    early = episode(alarm=120, recovered_at=150)
    assert outcome(COLLAPSED, early).missing == "silent"
    assert len(false_alarms(COLLAPSED, [early])) == 1
    still = episode(alarm=120)
    assert outcome(COLLAPSED, still).hit
    assert len(false_alarms(COLLAPSED, [still])) == 1


def test_allowed_severities_are_no_false_alarms_in_the_sick_layers() -> None:
    dead = episode("DEAD", severity=Severity.WARN)
    assert false_alarms(COLLAPSED, [dead]) == []
    assert len(false_alarms(COLLAPSED, [episode("DEAD", severity=Severity.CRITICAL)])) == 1
    assert len(false_alarms(COLLAPSED, [episode("DEAD", 3, severity=Severity.WARN)])) == 1
    assert false_alarms(Truth(), [episode("SHOCK", severity=Severity.INFO)]) == []
    assert len(false_alarms(Truth(), [dead])) == 1


def test_experts_and_recovery_must_be_right() -> None:
    dead = Expected(rule="DEAD", routers=(2,), onset=300, experts=(3, 7), until=800)
    over: dict[str, Any] = {"severity": Severity.WARN, "recovered_at": 820}
    truth = Truth(expected=(dead,))
    assert outcome(truth, episode("DEAD", **over, facts={"experts": (3, 7)})).hit
    assert outcome(truth, episode("DEAD", **over, facts={"experts": (3,)})).missing == "experts"
    over["recovered_at"] = None
    found = outcome(truth, episode("DEAD", **over, facts={"experts": (3, 7)}))
    assert found.missing == "recovery"


def test_trouble_of_the_whole_run_is_said_of_the_run_or_of_every_layer() -> None:
    meter = Truth(expected=(Expected(rule="METER", severity="error", onset=300),))
    everywhere = [episode("METER", router, severity=Severity.ERROR) for router in range(ROUTERS)]
    assert outcome(meter, episode("METER", -1, severity=Severity.ERROR)).hit
    assert outcome(meter, *everywhere).hit
    assert outcome(meter, *everywhere[1:]).missing == "layers"


def test_two_troubles_of_a_rule_are_answered_by_their_own_episodes() -> None:
    first, second = (
        Expected(rule="SHOCK", routers=(2,), onset=at, until=at + 30, severity="info")
        for at in (200, 600)
    )
    truth = Truth(expected=(first, second))
    told = episode("SHOCK", onset=205, alarm=230, recovered_at=230, severity=Severity.INFO)
    assert [o.hit for o in outcomes(truth, [told], STEPS, ROUTERS)] == [True, False]


def test_a_baseline_needs_the_layer_only() -> None:
    anything = episode("MaxVio", severity=Severity.WARN)
    assert plain(COLLAPSED, [anything]).hits == 1
    other = plain(COLLAPSED, [episode("MaxVio", 0, severity=Severity.WARN)])
    assert (other.hits, other.expected, other.false_alarms) == (0, 1, 1)


def test_a_warning_in_time_comes_before_the_fall() -> None:
    fall = Fall(("ERODING",), (2,), 0.5, 300, step=330)
    assert in_time(fall, [episode("ERODING")])
    assert not in_time(fall, [episode("ERODING", alarm=331)])
    assert not in_time(fall, [episode("ERODING", 1), episode("ERODING", alarm=120)])
    assert in_time(None, []) is None


def test_baselines_wait_for_their_persistence_and_do_not_repeat_themselves() -> None:
    run = RunRecord("run", (RouterInfo("L1", 1, 8, 2),))
    (violation,) = baselines()["MaxVio > 2"]
    for step in range(1, 400):
        load = 1.0 if step in range(200, 260) else 3.5
        violation.observe(run, StepRecord(step, router=RouterSummary(max_load=[load])))
    assert [e.alarm for e in violation.episodes] == [WARM_UP + PERSISTENCE]


def test_resuming_a_results_file_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[Case] = []

    def score(case: Case) -> RunScore:
        judged.append(case)
        return RunScore(scenario=case.scenario, shape=case.shape, seed=case.seed, code="x")

    monkeypatch.setattr(results, "score_case", score)
    path, wanted = tmp_path / "results.jsonl", [Case("healthy", "8/2", seed) for seed in range(4)]
    complete(wanted[:2], path, jobs=1)
    torn = path.read_bytes()[:-9]
    path.write_bytes(torn)
    scores = complete(wanted, path, jobs=1)
    assert [s.seed for s in scores] == [0, 1, 2, 3]
    assert [case.seed for case in judged] == [0, 1, 1, 2, 3]
    assert len(load(path)) == 4


def test_a_case_is_always_the_same_and_fits_its_scenario() -> None:
    wanted = list(cases(list(SCENARIOS), SHAPES, range(2)))
    assert {case.scenario for case in wanted} == set(SCENARIOS)
    for case in wanted:
        shape = drawn(case)
        assert shape == drawn(case)
        assert shape is not None
        assert SCENARIOS[case.scenario].fits(shape)
        assert shape.routers >= 2
    assert not any(case.scenario == "hot-expert" and case.shape == "8/1" for case in wanted)


def test_a_real_run_is_judged_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    score = results.score_case(Case("collapse", "4/1", 0))
    assert not score.error
    assert [o.hit for o in score.outcomes] == [True]
    show([score])
    assert "collapse" in capsys.readouterr().out
    assert failures([score]) == []


def test_every_missed_target_is_named() -> None:
    miss = Outcome(rule="DEAD", severity="warn", named=False, placed=False, missing="silent")
    base: dict[str, Any] = {"shape": "8/2", "seed": 0, "code": "x", "steps": 1000}
    sick = RunScore(scenario="dead-experts", outcomes=[miss], **base)
    well = RunScore(scenario="soft", hard_negative=True, false_criticals=1, **base)
    warned = RunScore(scenario="soft", hard_negative=True, false_warnings=1, **base)
    assert [len(failures([score])) for score in (sick, well, warned)] == [1, 1, 1]
