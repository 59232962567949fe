"""A run of another tool in the rest of the microscope: watched, judged, and read again."""

import json
import os
from pathlib import Path

import pytest

from microscope_tui.extensions.anatomy.coverage import coverage_of
from microscope_tui.runlog import NoRuns
from microscope_tui.sources import Search, SourceRequest
from microscope_tui.watch import RunWatch, pin_at
from microscope_tui.watch.fleet import Seen
from tests.sources import sound
from tests.sources.sqlite_writer import made

FAIR = [[16, 16, 16, 16], [16, 16, 16, 16]]
UNFAIR = [FAIR[0], [62, 1, 1, 0]]


def jsonl(folder: Path) -> None:
    path = folder / "run" / "monitors" / "file" / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(sound.jsonl([FAIR] * 199 + [UNFAIR] * 200))


def opened(folder: Path, **asked: int) -> RunWatch:
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (1e9, 1e9))  # at rest: the last step is complete
    (run,) = Search(folder, SourceRequest(**asked)).runs()  # type: ignore[arg-type]
    watch = RunWatch(run, patient=True)
    watch.read_all()
    assert watch.error is None
    return watch


def test_an_earlier_step_is_read_again_from_the_spool(tmp_path: Path) -> None:
    jsonl(tmp_path)
    watch = opened(tmp_path)
    pin = pin_at(watch, 100)
    assert pin is not None
    assert pin.step == 100
    assert pin.latest.counts(1) is not None


@pytest.mark.parametrize("name", ["run-a.wandb", "metrics.jsonl"])
def test_a_long_source_shows_its_whole_history_before_it_is_read(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microscope_tui.watch.run_watch._OVERVIEW_FROM_BYTES", 1)
    content = (sound.GOLDEN / "wandb").read_bytes()
    (tmp_path / name).write_bytes(content if "wandb" in name else sound.jsonl([FAIR] * 99))
    (run,) = Search(tmp_path).runs()
    watch = RunWatch(run)
    watch.open_overview()
    assert watch.sampled
    assert not watch.can_seek
    assert watch.latest is not None
    sampled = watch.latest.record.step
    os.utime(tmp_path / name, (1e9, 1e9))
    watch.read_all()
    assert not watch.sampled
    assert watch.can_seek
    assert watch.latest.record.step >= sampled


def test_a_change_is_one_that_was_seen_to_happen(tmp_path: Path) -> None:
    jsonl(tmp_path)
    (run,) = Search(tmp_path).runs()
    source = run.open()
    source.read()
    assert source.changed_at is None
    os.utime(run.path, (1e9, 1e9))
    source.read()
    assert source.changed_at is not None


def test_a_run_in_a_database_keeps_its_path_when_others_join_it(tmp_path: Path) -> None:
    base = tmp_path / "project.db"
    base.write_bytes(sound.trackio(sound.RUN))
    (run,) = Search(base).runs()
    assert run.path == tmp_path / "project.db#first"
    row = ("r3", "2026-01-01", "another", 1, json.dumps(sound.counts_row(1)))
    made(base, [f"INSERT INTO metrics ({sound.TRACKIO_COLUMNS}) VALUES (?, ?, ?, ?, ?)", row])
    assert {one.name for one in Search(base).runs()} == {"first", "another"}
    assert [one.path for one in Search(run.path).runs()] == [run.path]
    with pytest.raises(NoRuns, match="has no run 'third'; there are another, first"):
        Search(tmp_path / "project.db#third").runs()


def test_without_a_folder_for_temporary_files_a_source_is_judged_without_a_past(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError("no space")

    monkeypatch.setattr("microscope_tui.sources.translated_log.Spool", refuse)
    jsonl(tmp_path)
    watch = opened(tmp_path, top_k=1)
    assert watch.diagnosis is not None
    found = {(e.router_index, e.onset) for e in watch.diagnosis.episodes if e.rule == "COLLAPSE"}
    assert found == {(1, 200)}
    assert watch.latest is not None
    assert watch.latest.record.step == 399
    assert not watch.can_seek


def test_in_the_list_of_runs_a_source_is_judged_once_it_is_at_rest(tmp_path: Path) -> None:
    jsonl(tmp_path)
    (live,) = Search(tmp_path).runs()
    assert not Seen(live, live.glance(), None).may_be_judged
    for path in tmp_path.rglob("*"):
        os.utime(path, (1e9, 1e9))
    (still,) = Search(tmp_path).runs()
    assert Seen(still, still.glance(), None).may_be_judged


@pytest.mark.parametrize("late", ["a layer in front", "an expert"])
@pytest.mark.parametrize("name", ["run.csv", "run.jsonl"])
def test_what_appears_late_costs_no_earlier_step_of_the_curves_the_verdict_and_the_coverage(
    tmp_path: Path, name: str, late: str
) -> None:
    rows = []
    for step in range(1, 401):
        worst = (62, 2, 0) if step >= 200 else (22, 21, 21)
        row = {f"router/tokens_per_expert/1/{expert}": x for expert, x in enumerate(worst)}
        if step >= 380 and late == "an expert":
            row["router/tokens_per_expert/1/3"] = 0
        elif step >= 380:
            row |= {f"router/tokens_per_expert/0/{expert}": 16 for expert in range(4)}
        rows.append({"step": step, "tokens": 64, **row})
    names = list(rows[-1])
    table = [",".join(names), *(",".join(str(row.get(name, "")) for name in names) for row in rows)]
    lines = table if name == "run.csv" else [json.dumps(row) for row in rows]
    (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    watch = opened(tmp_path / name)
    assert watch.run is not None
    assert watch.diagnosis is not None
    at = 0 if late == "an expert" else 1
    router = watch.run.routers[at]
    assert (router.name, router.top_k) == ("L1", 1)
    assert list(watch.history.steps) == list(range(1, 401))
    assert all(value == value for value in watch.history._curves["effective_experts"][at].fine.mean)
    found = {finding.rule: finding.onset for finding in watch.diagnosis.findings()}
    assert 190 < found["COLLAPSE"] < 260
    layer = coverage_of(watch.file, 1, 1, 400).layers[at]
    tokens = [199 * 22 + 201 * 62, 199 * 21 + 201 * 2, 199 * 21]
    assert [expert.tokens for expert in layer.experts][:3] == tokens
    assert watch.source.missing.startswith("k = 1 is counts ÷ tokens")


def test_the_first_picture_of_a_long_source_has_the_layers_that_appear_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microscope_tui.watch.run_watch._OVERVIEW_FROM_BYTES", 1)
    counts = [[FAIR[0]]] * 300 + [FAIR] * 100
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(sound.jsonl(counts))
    (run,) = Search(path).runs()
    watch = RunWatch(run)
    watch.open_overview()
    assert watch.sampled
    assert watch.run is not None
    assert len(watch.run.routers) == 2
    assert watch.history.steps[0] < 50
    assert watch.history.last_step > 350
