"""Runs in databases of Trackio and MLflow: which rows are theirs, live, rewritten and damaged."""

import json
import math
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

import pytest

from microscope_tui.sources import Keys, Search, rules_of
from microscope_tui.sources.databases import MlflowReader, TrackioReader
from microscope_tui.sources.sqlite import Busy
from tests.sources import sound
from tests.sources.reading import all_rows, counts_of, translated, values
from tests.sources.sqlite_writer import Writer, made

OLDER = (
    "CREATE TABLE metrics (id INTEGER PRIMARY KEY AUTOINCREMENT, timestamp TEXT, "
    "project_name TEXT, run_name TEXT, step INTEGER, metrics TEXT)"
)
NEWER = OLDER.replace("project_name", "run_id")
TRIED = "first try"


def logged(run: str, step: object, row: object, **more: object) -> list[object]:
    fields = {"run_name": run, "step": step, "metrics": json.dumps(row), **more}
    fields.setdefault("timestamp", "2026-01-01T00:00:00+00:00")
    marks = ", ".join("?" * len(fields))
    return [f"INSERT INTO metrics ({', '.join(fields)}) VALUES ({marks})", list(fields.values())]


def losses(*steps: int) -> list[list[object]]:
    return [logged("a", step, {"loss": step}) for step in steps]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "p.db"


@pytest.fixture
def mlflow(path: Path) -> Path:
    path.write_bytes(sound.database("mlflow.sql"))
    return path


@pytest.mark.parametrize("create", [OLDER, NEWER])
def test_columns_of_older_and_newer_versions_are_read(path: Path, create: str) -> None:
    made(path, create, *(logged("a", step, row) for step, _, row in sound.rows(sound.RUN)))
    assert TrackioReader.runs(path) == ["a"]
    found = counts_of(translated(TrackioReader(path, Keys(), "a")))
    assert [list(step.values()) for step in found.values()] == sound.RUN


def test_runs_of_one_name_are_found_by_their_ids(path: Path) -> None:
    rows = [
        logged(name, step, {"moe_entropy/L-0": float(run) + step}, run_id=f"id{run}")
        for step in (1, 2)
        for run, name in enumerate(["b", "a", "a"])
    ]
    made(path, NEWER, *rows)
    assert TrackioReader.runs(path) == ["b", "a/id1", "a/id2"]
    assert [run.name for run in Search(path).runs()] == ["a/id2", "a/id1", "b"]  # the newest first
    numbers = values(all_rows(TrackioReader(path, Keys(), "a/id2")))
    assert [(step, value) for step, *_, value in numbers] == [(1, 3.0), (2, 4.0)]
    assert all_rows(TrackioReader(path, Keys(), "missing")) == []


def test_names_of_runs_are_printable(path: Path) -> None:
    made(path, NEWER, logged("\x1b[2Jx", 1, {"moe_entropy/L-0": 1.0}))
    (name,) = TrackioReader.runs(path)
    assert name == "\N{REPLACEMENT CHARACTER}[2Jx"
    assert len(all_rows(TrackioReader(path, Keys(), name))) == 1


@pytest.mark.parametrize("mode", ["WAL", "DELETE", "MEMORY"])
def test_every_row_of_a_writer_that_never_rests_is_read_once(path: Path, mode: str) -> None:
    with Writer(path) as writer:
        writer.run(f"PRAGMA journal_mode={mode}", NEWER, *losses(0))
        reader = TrackioReader(path, Keys(), "a")
        steps: list[int] = []
        writer.start(*losses(*range(1, 60)))
        end = time.monotonic() + 30
        while (not writer.is_done or steps[-1:] != [59]) and time.monotonic() < end:
            with suppress(Busy):
                found = reader.read()
                assert not found.restarted
                steps += [row.step for row in found.rows]
        writer.finish()  # no statement found a lock
    assert steps == list(range(60))


def test_a_long_table_is_read_in_pieces(path: Path) -> None:
    made(path, NEWER, *losses(*range(50)))
    reader = TrackioReader(path, Keys(), "a")
    assert len(reader.read(100).rows) < 10
    assert not reader.exhausted
    assert [row.step for row in all_rows(reader, 100)][-1] == 49


def test_another_file_under_the_name_restarts(path: Path) -> None:
    reader = TrackioReader(made(path, NEWER, *losses(1)), Keys(), "a")
    all_rows(reader)
    made(path.with_name("q.db"), NEWER, *losses(1, 2)).rename(path)
    found = reader.read()
    assert found.restarted
    assert [row.step for row in found.rows] == [1, 2]


def test_rows_without_a_step_or_numbers_are_counted_and_skipped(path: Path) -> None:
    rows = (None, {"loss": 1}), (1, [1, 2]), ("x", {"loss": 1}), (2, {"loss": "NaN"})
    statements = [logged("a", *row) for row in rows]
    reader = TrackioReader(made(path, NEWER, *statements), Keys(), "a")
    assert [row.step for row in all_rows(reader)] == [2]
    assert reader.defects.count == 3
    assert reader.defects.first[0].startswith("line 1: without a step from 0")


def test_a_deleted_run_is_not_found(mlflow: Path) -> None:
    assert TRIED in MlflowReader.runs(mlflow)
    with sqlite3.connect(mlflow) as database:
        database.execute("UPDATE runs SET lifecycle_stage = 'deleted' WHERE name = ?", [TRIED])
    assert TRIED not in MlflowReader.runs(mlflow)


def test_a_database_without_a_router_is_known_by_a_mapping_only(path: Path, mlflow: Path) -> None:
    own = rules_of(["max_load=loss"])
    made(mlflow, "DELETE FROM latest_metrics WHERE key LIKE 'moe%'")
    assert not MlflowReader.recognises(mlflow)
    assert MlflowReader.recognises(mlflow, own)
    made(path, "DROP TABLE metrics", NEWER, *losses(1))
    assert not TrackioReader.recognises(path)
    assert TrackioReader.recognises(path, own)


def test_only_the_parameters_that_are_needed_are_read(mlflow: Path) -> None:
    reader = MlflowReader(mlflow, Keys(), TRIED)
    all_rows(reader)
    assert reader.config == {"model/num_experts": 4, "top_k": 2}


@pytest.mark.parametrize(
    ("status", "reason"), [("FINISHED", "finished"), ("FAILED", "failed"), ("KILLED", "stopped")]
)
def test_the_end_of_a_run_comes_with_its_last_rows(mlflow: Path, status: str, reason: str) -> None:
    made(mlflow, ["UPDATE runs SET status = ?", [status]])
    reader = MlflowReader(mlflow, Keys(), TRIED)
    assert reader.read(1).ended == ""
    assert reader.read().ended == reason


def test_infinity_and_nan_are_what_was_logged_and_not_what_is_stored(mlflow: Path) -> None:
    first, second = values(all_rows(MlflowReader(mlflow, Keys(), "dense")))
    assert (first[0], first[4]) == (0, math.inf)  # stored as the largest number
    assert second[0] == 1
    assert math.isnan(second[4])  # stored as 0 with a flag
