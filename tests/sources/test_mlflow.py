"""MLflow runs: a database that MLflow wrote, live and damaged."""

import math
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from microscope_tui.sources import FORMATS, Keys, MlflowReader, Row, rules_of
from tests.sources.sqlite_writer import Writer, golden
from tests.sources.tables import all_rows, run_of, same_as_the_run_log, values

recognises, runs = MlflowReader.recognises, MlflowReader.runs

TRIED = "first try"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return golden(tmp_path / "mlflow.db", "mlflow.sql")


def step_values(rows: list[Row]) -> list[tuple[int, float]]:
    return [(step, value) for step, *_, value in values(rows)]


def test_counts_of_a_database_of_mlflow_itself_come_out(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recognises(database)
    assert FORMATS["mlflow"].place_of(database) == database
    assert runs(database) == [TRIED]  # the other run has no routers
    run, steps = run_of(MlflowReader(database, Keys(), TRIED), monkeypatch)
    same_as_the_run_log(steps)
    assert [(router.num_experts, router.top_k) for router in run.routers] == [(4, 2)] * 2


def test_only_the_parameters_that_are_needed_are_read(database: Path) -> None:
    reader = MlflowReader(database, Keys(), TRIED)
    all_rows(reader)
    assert reader.config == {"model/num_experts": 4, "top_k": 2}


def test_the_end_of_a_run_is_reported(database: Path) -> None:
    reader = MlflowReader(database, Keys(), TRIED)
    reasons = {reader.read().ended for _ in range(10)}
    assert reasons <= {"", "finished"}
    assert "finished" in reasons


def test_infinity_and_nan_are_what_was_logged_and_not_what_is_stored(database: Path) -> None:
    numbers = step_values(all_rows(MlflowReader(database, Keys(), "dense")))
    assert numbers[0] == (0, math.inf)  # stored as the largest number
    assert numbers[1][0] == 1
    assert math.isnan(numbers[1][1])  # stored as 0 with a flag


def test_a_growing_database_is_followed(database: Path) -> None:
    reader = MlflowReader(database, Keys(), TRIED)
    assert len(all_rows(reader)) == 3
    with closing(sqlite3.connect(database)) as found:
        run = found.execute("SELECT run_uuid FROM runs WHERE name = ?", (TRIED,)).fetchone()[0]
    with Writer(database) as writer:
        for step in range(4, 12):
            row = ["loss", 0.5, 1795560000000 + 1000 * step, run, step, 0]
            writer.run(["INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)", row])
            assert step_values(all_rows(reader)) == [(step, 0.5)]


def test_a_database_without_a_router_is_not_recognised(database: Path) -> None:
    with closing(sqlite3.connect(database)) as found:
        found.execute("DELETE FROM latest_metrics WHERE key LIKE 'moe%'")
        found.commit()
    assert not recognises(database)
    assert recognises(database, rules_of(["max_load=loss"]))
