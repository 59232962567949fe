"""A database in which a logger always has a transaction open: waited for, or the last verdict."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from microscope_tui.commands.check.command import _newest, _read_on
from microscope_tui.commands.check.prometheus import gauges_text
from microscope_tui.commands.check.report import judge
from microscope_tui.draw.frame import header, verdict
from microscope_tui.draw.glyphs import Glyphs
from microscope_tui.draw.spans import Line, plain
from microscope_tui.runlog import NoRuns
from microscope_tui.screens.runs.text import fit_list, run_line
from microscope_tui.sources import Keys, Search, catalogue, databases, sqlite, translated_log
from microscope_tui.watch import Fleet, RunWatch, why_no_verdict
from microscope_tui.watch.view import view_of
from tests.conftest import Call
from tests.sources import sound
from tests.sources.sqlite_writer import made

FAIR = [[16, 16, 16, 16], [16, 16, 16, 16]]
UNFAIR = [FAIR[0], [32, 32, 0, 0]]
STEPS = 240


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A run whose second layer has collapsed, at rest."""
    path = tmp_path / "logged" / "mlflow.db"
    path.parent.mkdir()
    path.write_bytes(sound.mlflow([FAIR] * 100 + [UNFAIR] * (STEPS - 100)))
    made(path, "UPDATE runs SET status = 'RUNNING'")
    os.utime(path, (time.time() - 30,) * 2)
    return path


def journal(base: Path) -> Path:
    return base.with_name(f"{base.name}-journal")


def occupy(base: Path) -> None:
    """As within a transaction of its writer."""
    journal(base).write_bytes(b"x" * 512)


@pytest.fixture
def busy_for_a_while(base: Path) -> Iterator[None]:
    """Until it was found busy at least once."""
    occupy(base)
    freed = threading.Timer(0.4, journal(base).unlink)
    freed.start()
    yield
    freed.join()


@pytest.mark.parametrize("place", ["file", "folder"])
@pytest.mark.usefixtures("busy_for_a_while")
def test_check_waits_for_a_busy_database_and_judges_it(call: Call, base: Path, place: str) -> None:
    older = base.with_name("metrics.csv")  # must not be judged instead
    if place == "folder":
        older.write_text("step,moe_entropy/L-0\n" + "".join(f"{n},0.5\n" for n in range(9)))
        os.utime(older, (1e9, 1e9))
    code, out, err = call("check", base if place == "file" else base.parent, "--top-k", 2, "--json")
    assert code == 2, err
    (run,) = json.loads(out)["runs"]
    assert run["path"].startswith(str(base))


@pytest.mark.parametrize("command", ["coverage", "export", "baseline"])
@pytest.mark.usefixtures("busy_for_a_while")
def test_every_command_that_reads_a_run_once_waits(call: Call, base: Path, command: str) -> None:
    words: tuple[object, ...] = (command, base, "--top-k", 2)
    if command == "baseline":
        words = ("check", base, "--top-k", 2, "--baseline", base)
    code, _, err = call(*words)
    assert "try again" not in err
    assert "Traceback" not in err
    assert code in (0, 1, 2)


def test_a_database_that_stays_busy_has_no_verdict(
    call: Call, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "BUSY_S", 0.2)
    occupy(base)
    code, _, err = call("check", base, "--top-k", 2)
    assert (code, "mlflow.db: written during 5 readings; try again" in err) == (3, True)
    code, _, err = call("check", base.parent, "--top-k", 2)
    assert (code, "no run can be read: mlflow.db: written during" in err) == (3, True)


def test_following_waits_as_long_as_it_takes(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "BUSY_S", 0.0)
    occupy(base)
    assert _newest(Search(base)) is None
    journal(base).unlink()
    assert _newest(Search(base)) is not None


def test_only_a_busy_database_is_searched_again(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[Path] = []
    real = Search._runs

    def counted(search: Search) -> Any:
        searched.append(search.root)
        return real(search)

    monkeypatch.setattr(Search, "_runs", counted)
    (tmp_path / "other.txt").write_text("no run")
    with pytest.raises(NoRuns):
        Search(tmp_path / "other.txt").runs(patient=True)
    assert Search(base).runs(patient=True)
    assert Search(tmp_path).runs(patient=True)
    assert searched == [tmp_path / "other.txt", base, tmp_path]


def test_one_that_becomes_busy_before_it_is_read_is_tried_for_a_while(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translated_log, "BUSY_S", 0.2)
    (run,) = Search(base).runs()
    watch = RunWatch(run, patient=True)
    occupy(base)
    watch.read_all()
    assert watch.error is not None
    assert why_no_verdict(watch).why == watch.error
    journal(base).unlink()
    watch.read_all()
    assert watch.error is None
    assert watch.latest is not None


@pytest.fixture
def watched(base: Path) -> RunWatch:
    """Read to its end; its writer is within a transaction from then on."""
    (run,) = Search(base, catalogue.SourceRequest(top_k=2)).runs()
    watch = RunWatch(run, patient=True)
    watch.read_all()
    assert [one.rule for one in watch.diagnosis.episodes if one.active]  # type: ignore[union-attr]
    occupy(base)
    os.utime(base)
    watch.read_all()
    return watch


def busy_since(watch: RunWatch, seconds: float) -> str:
    watch.source.busy_since = time.time() - seconds
    return time.strftime("busy since %H:%M:%S", time.localtime(watch.source.busy_since))


def roles_of(lines: list[Line]) -> set[str]:
    return {span.role for line in lines for span in line if span.text.strip()}


def test_the_last_verdict_stays_and_is_grey_after_a_minute(watched: RunWatch) -> None:
    assert (watched.error, why_no_verdict(watched).why) == (None, None)
    assert not watched.busy(), "for a few seconds it is not worth a word"
    for seconds, grey in ((30, False), (70, True)):
        since = busy_since(watched, seconds)
        view = view_of(watched)
        lines = verdict(view, 120, 4)
        assert since in plain(lines[0])
        assert ("badge-crit" in roles_of(lines)) is not grey
        shown = plain(header(view, 120, Glyphs.BRAILLE))
        assert since.removeprefix("busy ") in shown
        assert ("● busy" in shown) is grey
        calm = verdict(
            replace(view, findings=[], judging=replace(view.judging, pending=[])), 120, 4
        )
        assert since in plain(calm[0])
        assert ("ok" in roles_of(calm)) is not grey


def test_the_list_of_runs_keeps_a_busy_run_and_its_verdict_in_grey(
    base: Path, watched: RunWatch
) -> None:
    search = Search(base.parent, catalogue.SourceRequest(top_k=2))
    journal(base).unlink()
    fleet = Fleet(base.parent, search=search)
    fleet.search(now=True)
    assert len(fleet.runs) == 1
    occupy(base)
    os.utime(base)
    fleet.search(now=True)
    assert len(fleet.runs) == 1
    fleet.open = watched
    for seconds, grey in ((30, False), (70, True)):
        since = busy_since(watched, seconds)
        fleet.look_around()
        (card,) = fleet.cards()
        line = run_line(card, fit_list([card], 160), chosen=False)
        assert since.removeprefix("busy ") in plain(line)
        assert ("crit" in roles_of([line])) is not grey


def test_the_gauges_keep_the_severity_and_have_the_time(watched: RunWatch) -> None:
    busy_since(watched, 30)
    lines = gauges_text([watched]).splitlines()
    values = {line.split("{")[0]: line.split()[-1] for line in lines if "{" in line}
    assert values["moe_microscope_severity"] == "3"
    assert 29 < float(values["moe_microscope_seconds_busy"]) < 60


def test_following_reports_it_once_and_the_report_has_a_note(
    watched: RunWatch, capsys: pytest.CaptureFixture[str]
) -> None:
    since = busy_since(watched, 30)
    for _ in range(3):
        _read_on(watched, threading.Event())
    assert capsys.readouterr().err.count(f"{since}; the last verdict stays") == 1
    judgement = judge(watched.file, watch=watched)
    assert judgement.exit_code == 2
    assert f"{since}: the verdict covers what was read before" in judgement.notes


def test_new_steps_are_read_once_it_rests(watched: RunWatch, base: Path) -> None:
    busy_since(watched, 70)
    journal(base).unlink()
    watched.read_all()
    assert (watched.source.busy_since, watched.busy()) == (None, "")
    assert not watched.life().outdated


def test_a_busy_run_is_not_judged_as_one_that_ended(
    watched: RunWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    concluded: list[bool] = []
    monkeypatch.setattr(watched.diagnosis, "conclude", concluded.append)
    watched.source.modified = time.time() - 1e6
    watched.source.changed_at = None
    watched.conclude_if_over()
    assert not concluded
    watched.source.busy_since = None
    watched.conclude_if_over()
    assert concluded == [True]


def test_the_pieces_are_smaller_while_it_is_busy_and_larger_again_after(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = databases.MlflowReader.runs(base)
    reader = databases.MlflowReader(base, Keys(), name)
    asked: list[int] = []
    real = reader._after

    def after(tables: Any, size: int) -> Any:
        asked.append(size)
        return real(tables, size)

    monkeypatch.setattr(reader, "_after", after)
    monkeypatch.setattr(sqlite, "BETWEEN_TRIES_S", 0.0)
    rests = iter([False, False, True, True])
    monkeypatch.setattr(reader._database, "_is_unchanged", lambda: next(rests))
    reader.read(1 << 20)
    assert asked == [1 << 20, 1 << 19, 1 << 18]
    os.utime(base)
    reader.read(1 << 20)
    assert asked[3] == 1 << 19
