"""Many runs: a list from two short reads each, live ones judged in turn, files that move."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from benchmarks.bulk import bulk_lines, write_bulk
from microscope_tui.diagnosis import ANYTHING, RULES, Criteria, Severity
from microscope_tui.runlog import discover as discover_module, glance
from microscope_tui.watch import (
    Fleet,
    RunCard,
    RunWatch,
    VerdictCache,
    fleet as fleet_module,
    view_of,
)
from tests.conftest import header, step

SHAPE: dict[str, Any] = {"routers": 3, "num_experts": 8, "top_k": 2, "tokens": 512}


def write(root: Path, name: str, age_s: float = 0.0, **options: Any) -> Path:
    path = root / name / "metrics.jsonl"
    write_bulk(path, **{"steps": 20, **SHAPE, **options})
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def read_all(fleet: Fleet) -> None:
    for _ in range(2):
        fleet.search(now=True)
        while fleet.turn():
            pass


def fleet_of(root: Path) -> Fleet:
    fleet = Fleet(root)
    read_all(fleet)
    return fleet


def opened(fleet: Fleet) -> RunWatch:
    watch = fleet.open_run(fleet.runs[0])
    read_all(fleet)
    return watch


def cards(fleet: Fleet) -> dict[str, RunCard]:
    return {card.file.name: card for card in fleet.cards()}


def test_every_run_is_judged_by_the_criteria_of_the_fleet(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path, name, steps=600, collapse=(1, 200), finished=False)
    strict = Fleet(tmp_path)
    lenient = Fleet(tmp_path, criteria=Criteria(frozenset(RULES)))
    for fleet in (strict, lenient):
        fleet.search(now=True)
        fleet.open_run(fleet.runs[0])
        read_all(fleet)
    assert [bool(card.findings) for card in strict.cards()] == [True, True]
    assert [card.findings for card in lenient.cards()] == [[], []]


def test_the_list_says_how_every_run_is_doing(tmp_path: Path) -> None:
    write(tmp_path, "finished", 3600, steps=30)
    write(tmp_path, "live", 0, finished=False)
    write(tmp_path, "stale", 120, finished=False)
    write(tmp_path, "dead", 7200, finished=False)
    fleet = fleet_of(tmp_path)
    assert [card.file.name for card in fleet.cards()] == ["live", "stale", "finished", "dead"]
    found = cards(fleet)
    lives = {name: card.life[1:] for name, card in found.items()}
    ends = {"finished": ("finished", ""), "dead": ("finished", "no end record")}
    assert lives == {"live": ("live", ""), "stale": ("stalled", "usually 1 s")} | ends
    assert (found["finished"].step, found["finished"].planned_steps) == (30, 30)
    assert found["finished"].loss is not None
    assert 3500 < (found["finished"].age_s or 0) < 3700


def test_live_runs_are_judged_beside_the_open_one_and_the_rest_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, "sick", steps=600, collapse=(1, 200), finished=False)
    write(tmp_path, "well", steps=300, finished=False)
    write(tmp_path, "over", steps=600, collapse=(1, 200))
    fleet = fleet_of(tmp_path)
    found = cards(fleet)
    sick = found["sick"].findings
    assert [finding.rule for finding in sick] == ["COLLAPSE"]
    assert found["well"].findings == []
    assert found["over"].findings is None


def test_a_run_that_fell_silent_since_its_last_reading_is_kept_as_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "run", steps=234, collapse=(1, 200), finished=False)
    fleet = fleet_of(tmp_path)
    assert cards(fleet)["run"].findings == []
    for module in ("fleet", "run_watch"):
        monkeypatch.setattr(f"microscope_tui.watch.{module}.age_of", lambda *_, **__: 700.0)
    fleet.search(now=True)  # it is not followed any more
    assert [finding.rule for finding in cards(fleet)["run"].findings] == ["COLLAPSE"]


def test_a_list_of_many_runs_reads_only_the_ends_of_logs(tmp_path: Path, reads: list[int]) -> None:
    path = write(tmp_path, "long", 3600, steps=3_000)
    seen = glance(path)
    assert seen.last.step == 3_000
    assert seen.end is not None
    assert sum(reads) < path.stat().st_size / 20


def test_a_run_that_did_not_change_is_not_looked_at_again(tmp_path: Path, monkeypatch: Any) -> None:
    for at in range(5):
        write(tmp_path, f"run{at}", 3600)
    fleet = fleet_of(tmp_path)
    looked: list[Path] = []
    monkeypatch.setattr(discover_module, "glance", lambda p: (looked.append(p), glance(p))[1])
    read_all(fleet)
    assert looked == []
    changed = write(tmp_path, "run3", 1800, steps=25)
    read_all(fleet)
    assert looked == [changed]


def test_a_huge_log_starves_no_live_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microscope_tui.watch.run_watch.HOLD_S", 0.001)  # it is never huge for long
    huge = write(tmp_path, "huge", finished=False, steps=30_000)
    live = write(tmp_path, "live", finished=False)
    fleet = Fleet(tmp_path)
    fleet.search(now=True)
    fleet.turn()
    fleet.search(now=True)
    opened = fleet.open_run(next(run for run in fleet.runs if run.path == huge))
    lines = bulk_lines(steps=40, finished=False, **SHAPE)
    later = [line for line in lines if b'"kind":"step"' in line][20:]
    for line in later:
        with live.open("ab") as file:
            file.write(line)
        fleet.turn()
        fleet.turn()
    assert not opened.complete
    assert cards(fleet)["live"].step == 40
    read_all(fleet)
    assert cards(fleet)["huge"].step == 30_000


def test_a_run_that_is_deleted_leaves_the_list_and_stays_on_the_screen(tmp_path: Path) -> None:
    path = write(tmp_path, "run", finished=False)
    fleet = fleet_of(tmp_path)
    watch = opened(fleet)
    path.unlink()
    read_all(fleet)
    assert fleet.cards() == []
    assert (view_of(watch).step, view_of(watch).state) == (20, "deleted")


def test_permission_lost_and_given_back_costs_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    path = write(tmp_path, "run", steps=50, finished=False)
    fleet = fleet_of(tmp_path)
    watch = opened(fleet)
    real = os.open

    def refused(name: Any, *arguments: Any, **options: Any) -> int:
        if os.fspath(name) == os.fspath(path):
            raise PermissionError(13, "Permission denied")
        return real(name, *arguments, **options)

    with path.open("ab") as file:
        file.write(b'{"kind":"step","step":51,"tokens":512}\n')
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refused)
        fleet.turn()
        assert watch.error == "cannot be read: Permission denied"
        assert view_of(watch).step == 50
        card = cards(fleet)["run"]
        assert (card.error, card.life.word) == (watch.error, "live")  # its steps are still shown
    read_all(fleet)
    assert watch.error is None
    assert view_of(watch).step == 51


def test_a_folder_not_listed_for_a_while_keeps_its_runs(tmp_path: Path, monkeypatch: Any) -> None:
    write(tmp_path, "live", finished=False)
    fleet = fleet_of(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", mock.Mock(side_effect=OSError(116, "Stale file handle")))
        fleet.search(now=True)
        assert cards(fleet)["live"].findings == []
    fleet.search(now=True)
    assert cards(fleet)["live"].findings == []


@pytest.mark.parametrize("content", [b"", b"\0" * 4000, b"{", b'{"kind":"run"}\n', b"[]\n" * 9])
def test_a_glance_at_anything_is_no_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    assert glance(path).last is None
    assert glance(tmp_path / "missing.jsonl").error is not None


def test_a_late_run_record_is_the_header_of_the_list(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    first = json.dumps(header(planned_steps=100)).encode()
    second = json.dumps(header(planned_steps=200, resumed_at_step=5)).encode()
    path.write_bytes(first + b'\n{"kind":"step","step":9}\n' + second + b"\n")
    seen = glance(path)
    assert seen.run.planned_steps == 200


def test_a_run_that_becomes_critical_beside_the_open_one_is_told_once(tmp_path: Path) -> None:
    sick = write(tmp_path, "sick", 1, steps=180, collapse=(1, 200), finished=False)
    write(tmp_path, "well", steps=300, finished=False)
    fleet = fleet_of(tmp_path)
    well = opened(fleet)
    assert (well.file.name, fleet.critical) == ("well", {})
    write(tmp_path, "sick", 1, steps=400, collapse=(1, 200), finished=False)
    read_all(fleet)
    assert fleet.critical == {sick: "sick"}
    fleet.critical.clear()  # the list has shown it
    with sick.open("ab") as file:
        file.write(b'{"kind":"event","event":"eval","step":400}\n')
    read_all(fleet)
    assert fleet.critical == {}


def test_what_was_seen_on_the_screen_of_a_run_is_not_told_beside_another(tmp_path: Path) -> None:
    write(tmp_path, "sick", 0, steps=400, collapse=(1, 200), finished=False)
    write(tmp_path, "well", 1, steps=300, finished=False)
    fleet = fleet_of(tmp_path)
    assert opened(fleet).file.name == "sick"
    fleet.open_run(fleet.runs[1])
    read_all(fleet)
    assert [card.findings != [] for card in fleet.cards()] == [True, False]
    assert fleet.critical == {}


def test_a_live_run_is_followed_beside_the_open_one_from_its_first_step_on(tmp_path: Path) -> None:
    write(tmp_path, "open", finished=False)
    path = write(tmp_path, "begun", finished=False)
    path.write_bytes(path.read_bytes().partition(b"\n")[0] + b"\n")  # the header
    os.utime(path, (time.time() - 1,) * 2)
    fleet = fleet_of(tmp_path)
    opened(fleet)
    assert not fleet.follows_others
    with path.open("ab") as file:
        file.write(b'{"kind":"step","step":1,"tokens":512}\n')
    read_all(fleet)
    assert fleet.follows_others


def test_only_an_active_critical_alert_beside_the_open_run_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "beside", 1, finished=False)
    write(tmp_path, "open", finished=False)
    fleet = fleet_of(tmp_path)
    opened(fleet)
    told = []
    for active, severity in (
        (True, Severity.WARN),
        (False, Severity.CRITICAL),
        (True, Severity.CRITICAL),
    ):
        episode = SimpleNamespace(active=active, severity=severity)
        monkeypatch.setattr(RunWatch, "episodes", [episode])
        with path.open("ab") as file:
            file.write(b'{"kind":"event","event":"eval","step":20}\n')
        while fleet.turn():
            pass
        told.append(list(fleet.critical.values()))
    assert told == [[], [], ["beside"]]


def test_the_run_of_a_pipe_has_no_list_that_would_change(tmp_path: Path) -> None:
    write(tmp_path, "run", 3600)
    watch = opened(fleet_of(tmp_path))
    assert not Fleet.of_one(watch).is_judging


def test_the_list_takes_a_pause_of_a_followed_run_for_normal_if_it_had_a_long_one(
    tmp_path: Path, write_log: Any, balanced: Any
) -> None:
    times = [1e9 + 2 * n + 300 * (n > 4) for n in range(9)]
    steps = [step(n, [balanced()] * 3, 2048, time=time) for n, time in enumerate(times, 1)]
    path = write_log([header(planned_steps=99), *steps])
    os.utime(path, (time.time() - 100,) * 2)
    fleet = Fleet(tmp_path)
    fleet.search(now=True)
    fleet.look_around()
    (card,) = fleet.cards()
    assert card.life.word == "stalled", "two short reads know no pause"
    read_all(fleet)
    (card,) = fleet.cards()
    assert (card.life.word, card.step) == ("slow", 9)


@pytest.mark.parametrize(
    ("end", "age_s", "judged"),
    [(False, 599.0, False), (False, 600.0, True), (True, 0.0, True)],
)
def test_a_run_log_may_be_judged_once_it_ended_or_is_silent_for_ten_minutes(
    tmp_path: Path, end: bool, age_s: float, judged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "run", finished=end)
    fleet = fleet_of(tmp_path)
    monkeypatch.setattr("microscope_tui.watch.fleet.age_of", lambda *_, **__: age_s)
    (seen,) = fleet._glances.values()
    assert seen.may_be_judged is judged


def test_a_newer_run_is_opened_by_itself_only_where_nothing_is_lost(tmp_path: Path) -> None:
    path = write(tmp_path, "run", finished=False)
    fleet = fleet_of(tmp_path)
    assert fleet.may_switch(following=False), "nothing is open"
    watch = opened(fleet)
    assert not fleet.may_switch(following=True), "it is live"
    with path.open("ab") as file:
        file.write(b'{"kind":"event","event":"end","step":20,"reason":"finished"}\n')
    read_all(fleet)
    assert fleet.may_switch(following=True)
    assert not fleet.may_switch(following=False), "an earlier step is shown"
    watch.complete = False
    assert not fleet.may_switch(following=True), "it is still being read"


def test_a_search_runs_when_it_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(fleet_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    fleet = Fleet(tmp_path)
    fleet.search()
    write(tmp_path, "run")
    now[0] += 1.875
    assert not fleet.search()
    now[0] += 0.125
    assert fleet.search()
    write(tmp_path, "another")
    assert fleet.search(now=True)


def test_nothing_is_remembered_of_a_run_that_is_gone(tmp_path: Path) -> None:
    path = write(tmp_path, "run", 3600)
    fleet = fleet_of(tmp_path)
    while fleet.judge_finished():
        pass
    assert list(fleet._glances) == list(fleet._verdicts) == [path]
    path.unlink()
    read_all(fleet)
    assert not fleet._glances
    assert not fleet._verdicts


def test_the_version_of_the_open_run_rises_with_it_and_with_no_other(tmp_path: Path) -> None:
    beside = write(tmp_path, "beside", 1, finished=False)
    path = write(tmp_path, "open", finished=False)
    fleet = fleet_of(tmp_path)
    opened(fleet)
    for grows, rises in ((beside, False), (path, True)):
        before = fleet.open_version
        with grows.open("ab") as file:
            file.write(b'{"kind":"step","step":21,"tokens":512}\n')
        while fleet.turn():
            pass
        assert (fleet.open_version > before) is rises


@pytest.mark.parametrize("lacks", ["", "scan", "rest", "access", "size"])
def test_the_verdict_on_a_followed_run_is_kept_if_its_log_was_read_to_the_end(
    tmp_path: Path, lacks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "runs", "run", steps=150)
    write(tmp_path / "runs", "other", 7200)
    fleet = Fleet(tmp_path / "runs", kept=VerdictCache(ANYTHING, tmp_path / "state"))
    fleet.search(now=True)
    watch = opened(fleet)
    assert watch.file.name == "run"
    if lacks == "scan":
        watch.complete = False
    elif lacks == "rest":
        monkeypatch.setattr(RunWatch, "unread", True)
    elif lacks == "access":
        watch.error = "cannot be read"
    elif lacks == "size":
        watch.source.size += 1
    fleet.open_run(fleet.runs[1])
    assert (tmp_path / "state").exists() is not bool(lacks)
