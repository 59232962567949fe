"""MLflow runs: a file store and a database that MLflow wrote, live and damaged."""

import json
import math
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from microscope_tui.sources import FORMATS, Keys, MlflowDatabaseReader, Row, RowReader, rules_of
from microscope_tui.sources.mlflow import MlflowFolderReader, recognises, runs
from tests.sources.sqlite_writer import GOLDEN, Writer, golden
from tests.sources.tables import all_rows, run_of, same_as_the_run_log, values

TRIED = "first try"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "mlruns" / "0" / "0a1b"
    for name, text in json.loads((GOLDEN / "mlflow_folder.json").read_text()).items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)
    return run


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return golden(tmp_path / "mlflow.db", "mlflow.sql")


def log(folder: Path, key: str, *lines: tuple[object, ...]) -> None:
    path = folder / "metrics" / key
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(" ".join(map(str, line)) + "\n" for line in lines)


def step_values(rows: list[Row]) -> list[tuple[int, float]]:
    return [(step, value) for step, *_, value in values(rows)]


def test_counts_of_a_folder_of_mlflow_itself_come_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recognises(folder)
    run, steps = run_of(MlflowFolderReader(folder, Keys()), monkeypatch)
    same_as_the_run_log(steps)
    assert run.run == TRIED
    assert steps[0].record.time == 1_795_560_001.0
    assert [(router.num_experts, router.top_k) for router in run.routers] == [(4, 2)] * 2


def test_counts_of_a_database_of_mlflow_itself_come_out(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recognises(database)
    assert FORMATS["mlflow"].place_of(database) == database
    assert runs(database) == [TRIED]  # the other run has no routers
    run, steps = run_of(MlflowDatabaseReader(database, Keys(), TRIED), monkeypatch)
    same_as_the_run_log(steps)
    assert [(router.num_experts, router.top_k) for router in run.routers] == [(4, 2)] * 2


def test_only_the_parameters_that_are_needed_are_read(folder: Path, database: Path) -> None:
    assert (folder / "params" / "password").read_text() == "secret"
    of_folder, of_database = (
        MlflowFolderReader(folder, Keys()),
        MlflowDatabaseReader(database, Keys(), TRIED),
    )
    for reader in (of_folder, of_database):
        all_rows(reader)
        assert reader.config == {"model/num_experts": 4, "top_k": 2}


def test_the_end_of_a_run_is_reported(folder: Path, database: Path) -> None:
    readers: list[RowReader] = [
        MlflowFolderReader(folder, Keys()),
        MlflowDatabaseReader(database, Keys(), TRIED),
    ]
    for reader in readers:
        reasons = {reader.read().ended for _ in range(10)}
        assert reasons <= {"", "finished"}
        assert "finished" in reasons
    meta = (folder / "meta.yaml").read_text().replace("status: 3", "status: 1")
    (folder / "meta.yaml").write_text(meta)
    reader = MlflowFolderReader(folder, Keys())
    assert {reader.read().ended for _ in range(10)} == {""}


def test_infinity_and_nan_are_what_was_logged_and_not_what_is_stored(database: Path) -> None:
    numbers = step_values(all_rows(MlflowDatabaseReader(database, Keys(), "dense")))
    assert numbers[0] == (0, math.inf)  # stored as the largest number
    assert numbers[1][0] == 1
    assert math.isnan(numbers[1][1])  # stored as 0 with a flag


def test_files_are_merged_by_time_also_if_one_is_logged_less_often(folder: Path) -> None:
    log(folder, "lr", (1795560002000, 0.5, 2))
    rows = all_rows(MlflowFolderReader(folder, Keys()))
    assert [row.step for row in rows] == [1, 2, 3]
    assert [len(row.values) for row in rows] == [9, 10, 9]


def test_small_reads_give_the_same_rows(folder: Path) -> None:
    for step in range(4, 400):
        for key in ("loss", "lr", "moe_entropy/L-0"):
            log(folder, key, (1795560000000 + 1000 * step, step, step))
    whole = values(all_rows(MlflowFolderReader(folder, Keys())))
    assert values(all_rows(MlflowFolderReader(folder, Keys()), 1)) == whole
    assert len(whole) == 27 + 396 * 3
    assert [step for step, *_ in whole] == sorted(step for step, *_ in whole)


def test_a_resumed_run_steps_back_in_the_order_of_time(folder: Path) -> None:
    for at, step in enumerate([4, 5, 4, 5]):
        log(folder, "loss", (1795560010000 + at, step, step))
        if step == 5:
            log(folder, "lr", (1795560010000 + at, 0.5, step))
    rows = all_rows(MlflowFolderReader(folder, Keys()))
    assert [row.step for row in rows] == [1, 2, 3, 4, 5, 4, 5]


def test_a_growing_folder_is_followed_with_the_newest_moment_held_back(folder: Path) -> None:
    reader = MlflowFolderReader(folder, Keys())
    all_rows(reader)
    log(folder, "loss", (1795560005000, 0.5, 5))
    assert not reader.read().rows  # other values of this moment may be on their way
    assert not reader.exhausted
    log(folder, "lr", (1795560005000, 0.25, 5))
    log(folder, "loss", (1795560006000, 0.5, 6))
    rows = all_rows(reader)
    assert [(row.step, len(row.values)) for row in rows] == [(5, 2), (6, 1)]


def test_a_torn_line_of_a_metric_waits_for_its_end(folder: Path) -> None:
    reader = MlflowFolderReader(folder, Keys())
    all_rows(reader)
    path = folder / "metrics" / "loss"
    for piece in ("17955600", "05000 0.1", "25 5", "\n"):
        assert all_rows(reader) == []
        with path.open("a") as file:
            file.write(piece)
    assert step_values(all_rows(reader)) == [(5, 0.125)]


def test_a_folder_that_was_written_anew_restarts_and_a_removed_one_is_reported(
    folder: Path,
) -> None:
    reader = MlflowFolderReader(folder, Keys())
    all_rows(reader)
    (folder / "metrics" / "loss").write_text("1795560001000 9.5 1\n")
    restarted = [reader.read().restarted for _ in range(3)]
    assert restarted == [True, False, False]
    folder.rename(folder.with_name("gone"))
    assert not reader.read().rows
    assert reader.deleted


@pytest.mark.parametrize("line", ["", "x 1 2", "1 x 2", "1 2 x", "1 2 3 4 5 6", "-1 2 3", "1 2 -3"])
def test_lines_that_are_none_are_counted_and_skipped(folder: Path, line: str) -> None:
    log(folder, "loss", (line,), (1795560009000, 0.5, 9))
    reader = MlflowFolderReader(folder, Keys())
    assert [row.step for row in all_rows(reader)] == [1, 2, 3, 9]
    assert reader.defects.count == 1


def test_links_in_a_folder_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("1795560001000 9.5 1\n")
    (folder / "metrics" / "lr").symlink_to(tmp_path / "elsewhere")
    (folder / "metrics" / "train").symlink_to(folder / "metrics")
    os.mkfifo(folder / "metrics" / "grad_norm")
    rows = all_rows(MlflowFolderReader(folder, Keys()))
    assert [len(row.values) for row in rows] == [9, 9, 9]


def test_a_growing_database_is_followed(database: Path) -> None:
    reader = MlflowDatabaseReader(database, Keys(), TRIED)
    assert len(all_rows(reader)) == 3
    with closing(sqlite3.connect(database)) as found:
        run = found.execute("SELECT run_uuid FROM runs WHERE name = ?", (TRIED,)).fetchone()[0]
    with Writer(database) as writer:
        for step in range(4, 12):
            row = ["loss", 0.5, 1795560000000 + 1000 * step, run, step, 0]
            writer.run(["INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)", row])
            assert step_values(all_rows(reader)) == [(step, 0.5)]


def test_folders_and_databases_without_a_router_are_not_recognised(
    folder: Path, database: Path, tmp_path: Path
) -> None:
    assert not recognises(folder / "metrics")
    assert not recognises(folder.parent)
    dense = tmp_path / "dense"
    log(dense, "my/3", (1, 2, 3))
    (dense / "meta.yaml").write_text("run_name: dense\n")
    assert not recognises(dense)
    assert recognises(dense, rules_of([r"max_load=my/(?P<layer>\d+)"]))
    with closing(sqlite3.connect(database)) as found:
        found.execute("DELETE FROM latest_metrics WHERE key LIKE 'moe%'")
        found.commit()
    assert not recognises(database)
