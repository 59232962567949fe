"""Trackio and MLflow themselves write; the readers give back what was logged.

``python -m tests.peers.test_databases`` writes ``tests/sources/golden/*.sql`` again.
"""

import importlib
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.sources import Keys
from microscope_tui.sources.databases import MlflowReader, TrackioReader
from tests.sources.reading import all_rows, translated
from tests.sources.sound import GOLDEN, counts_row
from tests.sources.test_equal_to_run_logs import counts_log, facts

START_MS = 1_795_560_000_000
ALONE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
Written = tuple[Path, Callable[[int], object]]
"""The database, and what logs a further step of the first run."""


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (ALONE | {"TRACKIO_DIR": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)


def trackio_storage(folder: Path) -> Any:
    storage: Any = importlib.import_module("trackio.sqlite_storage")
    storage.TRACKIO_DIR = folder
    return storage.SQLiteStorage


def trackio(folder: Path) -> Written:
    """Two runs of three steps as Trackio writes them, the second without routers."""
    log = trackio_storage(folder).bulk_log
    config = {"model": {"num_experts": 4}, "num_experts_per_tok": 2, "_Username": "secret"}
    first = [counts_row(step) for step in (1, 2)]
    log("moe", "first", first, steps=[1, 2], config=config, run_id="r1")
    log("moe", "dense", [{"loss": 1.0, "acc": float("nan")}], steps=[1], run_id="r2")
    log("moe", "first", [counts_row(3)], steps=[3], run_id="r1")
    (path,) = folder.rglob("moe.db")
    return path, lambda step: log("moe", "first", [{"loss": 0.5}], steps=[step], run_id="r1")


def mlflow(folder: Path) -> Written:
    """Two runs of three steps in a store, the second without routers."""
    module: Any = importlib.import_module("mlflow")
    client = module.MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    first = client.create_run("0", run_name="a try", start_time=START_MS).info.run_id
    dense = client.create_run("0", run_name="dense", start_time=START_MS + 1).info.run_id
    for name, value in (("model/num_experts", 4), ("top_k", 2), ("password", "secret")):
        client.log_param(first, name, value)
    client.log_metric(dense, "loss", float("inf"), timestamp=START_MS, step=0)
    client.log_metric(dense, "loss", float("nan"), timestamp=START_MS + 1, step=1)
    for step in (1, 2, 3):
        at, metric = START_MS + 1000 * step, module.entities.Metric
        rows = [metric(key, value, at, step) for key, value in counts_row(step).items()]
        client.log_batch(first, metrics=rows)
    client.set_terminated(first, end_time=START_MS + 4000)

    def log(step: int) -> None:
        client.update_run(first, status="RUNNING")
        client.log_metric(first, "loss", 0.5, step=step)

    return folder / "mlflow.db", log


@pytest.mark.filterwarnings("ignore")  # of the dependencies of mlflow
@pytest.mark.parametrize(
    ("write", "needs", "reads", "run"),
    [(trackio, "trackio", TrackioReader, "first"), (mlflow, "sqlalchemy", MlflowReader, "a try")],
    ids=["trackio", "mlflow"],
)
def test_what_was_logged_comes_out_and_what_follows_too(
    write: Callable[[Path], Written], needs: str, reads: Any, run: str, tmp_path: Path
) -> None:
    pytest.importorskip(write.__name__)
    pytest.importorskip(needs)
    path, log = write(tmp_path)
    assert reads.recognises(path)
    assert reads.runs(path) == [run]
    assert facts(translated(reads(path, Keys(), run))) == facts(counts_log())
    reader = reads(path, Keys(), run)
    assert len(all_rows(reader)) == 3
    for step in range(4, 12):
        log(step)
        assert [row.step for row in all_rows(reader)] == [step]


def statements(path: Path, tables: Sequence[str]) -> str:
    with closing(sqlite3.connect(path)) as database:
        every = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in every:
            if name not in (*tables, "sqlite_sequence"):
                database.execute(f'DROP TABLE "{name}"')
        first, *lines, last = database.iterdump()
    assert (first, last) == ("BEGIN TRANSACTION;", "COMMIT;")
    return "\n".join(line for line in lines if "sqlite_sequence" not in line) + "\n"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as here, pytest.MonkeyPatch.context() as patch:
        for name, value in (ALONE | {"TRACKIO_DIR": here}).items():
            patch.setenv(name, value)
        text = statements(trackio(Path(here))[0], ["metrics", "configs"])
        (GOLDEN / "trackio.sql").write_text(text)
        wanted = ["metrics", "latest_metrics", "params", "runs"]
        text = statements(mlflow(Path(here))[0], wanted).replace(str(Path.cwd()), "/tmp/runs")
        (GOLDEN / "mlflow.sql").write_text(text)
