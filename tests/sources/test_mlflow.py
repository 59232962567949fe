"""MLflow runs: a database that MLflow wrote, live and damaged."""

import math
from pathlib import Path

import pytest

from microscope_tui.sources import Keys, MlflowReader, Row, rules_of
from tests.sources import sound
from tests.sources.reading import all_rows, values
from tests.sources.sqlite_writer import Writer, made

recognises = MlflowReader.recognises

TRIED = "first try"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "mlflow.db"
    path.write_bytes(sound.database("mlflow.sql"))
    return path


def step_values(rows: list[Row]) -> list[tuple[int, float]]:
    return [(step, value) for step, *_, value in values(rows)]


def test_only_the_parameters_that_are_needed_are_read(database: Path) -> None:
    reader = MlflowReader(database, Keys(), TRIED)
    all_rows(reader)
    assert reader.config == {"model/num_experts": 4, "top_k": 2}


@pytest.mark.parametrize(
    ("status", "reason"), [("FINISHED", "finished"), ("FAILED", "failed"), ("KILLED", "stopped")]
)
def test_the_end_of_a_run_is_reported_with_its_last_rows(
    database: Path, status: str, reason: str
) -> None:
    made(database, ["UPDATE runs SET status = ?", [status]])
    reader = MlflowReader(database, Keys(), TRIED)
    assert reader.read(1).ended == ""
    assert reader.read().ended == reason


def test_infinity_and_nan_are_what_was_logged_and_not_what_is_stored(database: Path) -> None:
    numbers = step_values(all_rows(MlflowReader(database, Keys(), "dense")))
    assert numbers[0] == (0, math.inf)  # stored as the largest number
    assert numbers[1][0] == 1
    assert math.isnan(numbers[1][1])  # stored as 0 with a flag


def test_a_growing_database_is_followed(database: Path) -> None:
    reader = MlflowReader(database, Keys(), TRIED)
    assert len(all_rows(reader)) == 3
    with Writer(database) as writer:
        ((run,),) = writer.run(["SELECT run_uuid FROM runs WHERE name = ?", [TRIED]])
        for step in range(4, 8):
            row = ["loss", 0.5, 1795560000000 + 1000 * step, run, step, 0]
            writer.run(["INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)", row])
            assert step_values(all_rows(reader)) == [(step, 0.5)]


def test_a_database_without_a_router_is_recognised_by_a_mapping_only(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    without = ("DELETE FROM latest_metrics WHERE key LIKE 'moe%'", ())
    path.write_bytes(sound.database("mlflow.sql", without))
    assert not recognises(path)
    assert recognises(path, rules_of(["max_load=loss"]))
