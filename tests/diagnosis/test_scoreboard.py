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
INFO, WARN, _, ERROR = Severity


def true(rule: str, *routers: int, **changes: Any) -> Expected:
    return Expected(rule=rule, routers=routers, **{"onset": 300} | changes)


CRASH = true("COLLAPSE", 2, severity="crit", tolerance=40)
COLLAPSED = Truth(expected=(CRASH,), allowed={"DEAD": "warn"})
DYING = Truth(expected=(true("DEAD", 2, experts=(3, 7), until=800),))
MISMEASURED = Truth(expected=(true("METER", severity="error"),))
SHOCKS = Truth(
    expected=tuple(true("SHOCK", 2, onset=at, until=at + 30, severity="info") for at in (200, 600))
)


def episode(rule: str = "COLLAPSE", router: int = 2, **changes: Any) -> Episode:
    """By default a right answer to ``COLLAPSE``: a warning at 320, critical from 350 on."""
    severity = changes.get("severity", Severity.CRITICAL)
    alarm = changes.setdefault("alarm", 320)
    changes.setdefault("onset", min(310, alarm))
    graded = [Grade(alarm, min(severity, WARN), 0.3), Grade(alarm + 30, severity, 0.1)]
    known = {"severity": severity, "last": STEPS, "value": 0.1, "limit": 0.35, "grades": graded}
    return Episode(rule=rule, router_index=router, **(known | changes))


def dead(experts: tuple[int, ...], recovered_at: int | None = 820) -> Episode:
    return episode("DEAD", severity=WARN, recovered_at=recovered_at, facts={"experts": experts})


def meters(first: int) -> list[Episode]:
    return [episode("METER", router, severity=ERROR) for router in range(first, ROUTERS)]


@pytest.mark.parametrize(
    ("truth", "episodes", "missing", "wrong"),
    [
        (COLLAPSED, [episode()], [""], 0),
        (COLLAPSED, [episode(router=1)], ["layers"], 1),
        (Truth(expected=(true("COLLAPSE", 1, 2),)), [episode()], ["layers"], 0),
        (COLLAPSED, [], ["silent"], 0),
        (COLLAPSED, [episode(severity=WARN)], ["severity"], 0),
        (COLLAPSED, [episode(alarm=120, recovered_at=150)], ["silent"], 1),  # over before
        (COLLAPSED, [episode(alarm=120)], [""], 1),  # still there when it begins
        (COLLAPSED, [episode(), episode("DEAD", severity=WARN)], [""], 0),  # allowed
        (COLLAPSED, [episode(), episode("DEAD")], [""], 1),  # more severe than allowed
        (COLLAPSED, [episode(), episode("DEAD", 3, severity=WARN)], [""], 1),  # healthy layer
        (DYING, [dead((3, 7))], [""], 0),
        (DYING, [dead((3,))], ["experts"], 0),
        (DYING, [dead((3, 7), None)], ["recovery"], 0),
        (MISMEASURED, [episode("METER", -1, severity=ERROR)], [""], 0),  # of the whole run
        (MISMEASURED, meters(0), [""], 0),  # or of every layer
        (MISMEASURED, meters(1), ["layers"], 0),
        (SHOCKS, [episode("SHOCK", alarm=230, recovered_at=230, severity=INFO)], ["", "silent"], 0),
        (Truth(), [episode("SHOCK", severity=INFO)], [], 0),
        (Truth(), [episode("DEAD", severity=WARN)], [], 1),
    ],
)
def test_a_hit_is_the_right_rule_in_time_in_the_right_layers(
    truth: Truth, episodes: list[Episode], missing: list[str], wrong: int
) -> None:
    found = outcomes(truth, episodes, STEPS, ROUTERS)
    assert [outcome.missing for outcome in found] == missing
    assert len(false_alarms(truth, episodes)) == wrong


def test_a_hit_has_its_delays_and_a_false_alarm_its_layer() -> None:
    (found,) = outcomes(COLLAPSED, [episode()], STEPS, ROUTERS)
    assert (found.hit, found.placed, found.dated) == (True, True, True)
    assert (found.delay, found.critical_delay) == (20, 50)
    (wrong,) = outcomes(COLLAPSED, [episode(router=1)], STEPS, ROUTERS)
    assert (wrong.hit, wrong.named, wrong.placed) == (False, True, False)
    (alarm,) = false_alarms(COLLAPSED, [episode(router=1)])
    assert (alarm.rule, alarm.severity, alarm.router) == ("COLLAPSE", "crit", 1)


def test_a_baseline_needs_the_layer_only() -> None:
    assert plain(COLLAPSED, [episode("MaxVio", severity=WARN)]).hits == 1
    other = plain(COLLAPSED, [episode("MaxVio", 0, severity=WARN)])
    assert (other.hits, other.expected, other.false_alarms) == (0, 1, 1)


def test_baselines_wait_for_their_persistence_and_do_not_repeat_themselves() -> None:
    run = RunRecord("run", (RouterInfo("L1", 1, 8, 2),))
    (violation,) = baselines()["MaxVio > 2"]
    for step in range(1, 400):
        load = 1.0 if step in range(200, 260) else 3.5
        violation.observe(run, StepRecord(step, router=RouterSummary(max_load=[load])))
    assert [e.alarm for e in violation.episodes] == [WARM_UP + PERSISTENCE]


def test_a_warning_in_time_comes_before_the_fall() -> None:
    fall = Fall(("ERODING",), (2,), 0.5, 300, step=330)
    assert in_time(fall, [episode("ERODING")])
    assert not in_time(fall, [episode("ERODING", alarm=331)])
    assert not in_time(fall, [episode("ERODING", 1), episode("ERODING", alarm=120)])
    assert in_time(None, []) is None


def test_resuming_a_results_file_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[int] = []

    def score(case: Case) -> RunScore:
        judged.append(case.seed)
        return RunScore(scenario=case.scenario, shape=case.shape, seed=case.seed, code="x")

    monkeypatch.setattr(results, "score_case", score)
    path, wanted = tmp_path / "results.jsonl", [Case("healthy", "8/2", seed) for seed in range(4)]
    complete(wanted[:2], path, jobs=1)
    path.write_bytes(path.read_bytes()[:-9])  # torn
    scores = complete(wanted, path, jobs=1)
    assert [s.seed for s in scores] == [0, 1, 2, 3]
    assert judged == [0, 1, 1, 2, 3]
    assert len(load(path)) == 4


def test_a_case_is_always_the_same_and_fits_its_scenario() -> None:
    wanted = list(cases(list(SCENARIOS), SHAPES, range(2)))
    assert {case.scenario for case in wanted} == set(SCENARIOS)
    for case in wanted:
        shape = drawn(case)
        assert shape is not None
        assert shape == drawn(case)
        assert SCENARIOS[case.scenario].fits(shape)
        assert shape.routers >= 2
    assert not any(case.scenario == "hot-expert" and case.shape == "8/1" for case in wanted)


def test_a_real_run_is_judged_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    score = results.score_case(Case("collapse", "4/1", 0))
    assert (score.error, [o.hit for o in score.outcomes]) == ("", [True])
    show([score])
    assert "collapse" in capsys.readouterr().out
    assert failures([score]) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"outcomes": [Outcome(rule="D", severity="warn", named=False, placed=False, missing="x")]},
        {"hard_negative": True, "false_criticals": 1},
        {"hard_negative": True, "false_warnings": 1},
    ],
)
def test_every_missed_target_is_named(changes: dict[str, Any]) -> None:
    known: dict[str, Any] = {"scenario": "soft", "shape": "8/2", "seed": 0, "steps": 1000}
    assert len(failures([RunScore(code="x", **known | changes)])) == 1
