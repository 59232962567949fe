"""Trackio databases: a golden one of Trackio itself, older and newer columns, live and damaged."""

import json
import time
from contextlib import suppress
from pathlib import Path

import pytest

from microscope_tui.sources import Busy, Keys, TrackioReader, Unreadable, rules_of
from tests.sources.reading import all_rows, counts_of, translated, values
from tests.sources.sound import COUNTS, counts_row
from tests.sources.sqlite_writer import Writer, made

recognises, runs = TrackioReader.recognises, TrackioReader.runs

OLDER = (
    "CREATE TABLE metrics (id INTEGER PRIMARY KEY AUTOINCREMENT, timestamp TEXT, "
    "project_name TEXT, run_name TEXT, step INTEGER, metrics TEXT)"
)
NEWER = (
    "CREATE TABLE metrics (id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT, timestamp TEXT, "
    "run_name TEXT, step INTEGER, metrics TEXT)"
)


def logged(run: str, step: object, row: object, **more: object) -> list[object]:
    fields = {"run_name": run, "step": step, "metrics": json.dumps(row), **more}
    fields.setdefault("timestamp", "2026-01-01T00:00:00+00:00")
    marks = ", ".join("?" * len(fields))
    return [f"INSERT INTO metrics ({', '.join(fields)}) VALUES ({marks})", list(fields.values())]


@pytest.mark.parametrize("create", [OLDER, NEWER])
def test_columns_of_older_and_newer_versions_are_read(tmp_path: Path, create: str) -> None:
    path = made(tmp_path / "p.db", create, *(logged("a", s, counts_row(s)) for s in (1, 2, 3)))
    assert runs(path) == ["a"]
    assert counts_of(translated(TrackioReader(path, Keys(), "a"))) == {
        step: {"L0": rows[0], "L1": rows[1]} for step, rows in enumerate(COUNTS, 1)
    }


def test_runs_are_told_apart_by_their_ids(tmp_path: Path) -> None:
    rows = [
        logged(name, step, {"moe_entropy/L-0": float(run) + step}, run_id=f"id{run}")
        for step in (1, 2)
        for run, name in enumerate(["b", "a", "a"])
    ]
    path = made(tmp_path / "p.db", NEWER, *rows)
    assert runs(path) == ["b", "a/id1", "a/id2"]
    numbers = values(all_rows(TrackioReader(path, Keys(), "a/id2")))
    assert [(step, value) for step, *_, value in numbers] == [(1, 3.0), (2, 4.0)]
    assert all_rows(TrackioReader(path, Keys(), "missing")) == []


def test_names_of_runs_are_printable(tmp_path: Path) -> None:
    path = made(tmp_path / "p.db", NEWER, logged("\x1b[2Jx", 1, {"moe_entropy/L-0": 1.0}))
    (name,) = runs(path)
    assert name == "\N{REPLACEMENT CHARACTER}[2Jx"
    assert len(all_rows(TrackioReader(path, Keys(), name))) == 1


def test_a_live_run_is_followed_row_by_row(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    with Writer(path) as writer:
        writer.run("PRAGMA journal_mode=WAL", NEWER, logged("a", 0, {"loss": 1.0}))
        reader = TrackioReader(path, Keys(), "a")
        assert [row.step for row in all_rows(reader)] == [0]
        for step in range(1, 20):
            writer.run(logged("other", step, {"loss": 9.0}), logged("a", step, {"loss": 1.0}))
            assert [row.step for row in all_rows(reader)] == [step]
        assert not reader.read().rows
        assert reader.exhausted
        assert reader.offset == reader.size > 0


@pytest.mark.parametrize("mode", ["WAL", "DELETE", "MEMORY"])
def test_every_row_of_a_writer_that_never_rests_is_read_once(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "p.db"
    with Writer(path) as writer:
        writer.run(f"PRAGMA journal_mode={mode}", NEWER, logged("a", 0, {"loss": 1.0}))
        reader = TrackioReader(path, Keys(), "a")
        steps: list[int] = []
        writer.start(*(logged("a", step, {"loss": 1.0}) for step in range(1, 100)))
        end = time.monotonic() + 30
        while (not writer.is_done or steps[-1:] != [99]) and time.monotonic() < end:
            with suppress(Busy):
                found = reader.read()
                assert not found.restarted
                steps += [row.step for row in found.rows]
        writer.finish()  # no statement found a lock
    assert steps == list(range(100))


def test_small_reads_give_the_same_rows(tmp_path: Path) -> None:
    path = made(tmp_path / "p.db", NEWER, *(logged("a", s, {"loss": s}) for s in range(50)))
    reader = TrackioReader(path, Keys(), "a")
    assert len(reader.read(100).rows) < 10
    assert not reader.exhausted
    assert [row.step for row in all_rows(reader, 100)][-1] == 49


def test_a_rewritten_table_restarts(tmp_path: Path) -> None:
    rows = [logged("a", step, {"loss": step}) for step in range(5)]
    path = made(tmp_path / "p.db", NEWER, *rows)
    reader = TrackioReader(path, Keys(), "a")
    all_rows(reader)
    made(path, "DELETE FROM metrics", logged("a", 7, {"loss": 1}))
    found = reader.read()
    assert found.restarted
    assert [row.step for row in found.rows] == [7]


def test_another_file_under_the_name_restarts(tmp_path: Path) -> None:
    path = made(tmp_path / "p.db", NEWER, logged("a", 1, {"loss": 1}))
    reader = TrackioReader(path, Keys(), "a")
    all_rows(reader)
    made(tmp_path / "q.db", NEWER, *(logged("a", step, {"loss": 1}) for step in (1, 2)))
    (tmp_path / "q.db").rename(path)
    found = reader.read()
    assert found.restarted
    assert [row.step for row in found.rows] == [1, 2]


def test_rows_that_are_none_are_counted_and_skipped(tmp_path: Path) -> None:
    rows = [
        logged("a", None, {"loss": 1}),
        logged("a", 1, [1, 2]),
        logged("a", "x", {"loss": 1}),
        logged("a", 2, {"loss": "NaN"}),
    ]
    reader = TrackioReader(made(tmp_path / "p.db", NEWER, *rows), Keys(), "a")
    assert [row.step for row in all_rows(reader)] == [2]
    assert reader.defects.count == 3
    assert reader.defects.first[0].startswith("line 1: without a step from 0")


def test_a_database_without_a_router_is_recognised_by_a_mapping_only(tmp_path: Path) -> None:
    path = made(tmp_path / "p.db", NEWER, logged("a", 1, {"mine": 1.0}))
    assert not recognises(path)
    assert recognises(path, rules_of(["max_load=mine"]))


def test_a_view_instead_of_the_table_is_refused(tmp_path: Path) -> None:
    view = "CREATE VIEW metrics AS SELECT 1 id, 1 run_name, 1 timestamp, 1 step, 1 metrics"
    path = made(tmp_path / "p.db", view)
    with pytest.raises(Unreadable, match="metrics is a view"):
        recognises(path)
    with pytest.raises(Unreadable, match="metrics is a view"):
        TrackioReader(path, Keys(), "a").read()
