"""MLflow itself writes; the reader gives back what was logged.

``python -m tests.peers.test_mlflow`` writes ``tests/sources/golden/mlflow.sql`` again.
"""

import importlib
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.sources import Keys, MlflowReader
from tests.sources.reading import all_rows, translated
from tests.sources.sound import counts_row
from tests.sources.test_equal_to_run_logs import counts_log, facts

recognises, runs = MlflowReader.recognises, MlflowReader.runs

GOLDEN = Path(__file__).parents[1] / "sources" / "golden"
TABLES = ("metrics", "latest_metrics", "params", "runs")
START_MS = 1_795_560_000_000


def write(place: str) -> tuple[Any, str]:
    """Two runs of three steps in a store, the second without routers; a client, and the first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        mlflow: Any = importlib.import_module("mlflow")
        client = mlflow.MlflowClient(tracking_uri=place)
        metric = mlflow.entities.Metric
        first = client.create_run("0", run_name="first try", start_time=START_MS).info.run_id
        dense = client.create_run("0", run_name="dense", start_time=START_MS + 1).info.run_id
        client.log_param(first, "model/num_experts", 4)
        client.log_param(first, "top_k", 2)
        client.log_param(first, "password", "secret")
        client.log_metric(dense, "loss", float("inf"), timestamp=START_MS, step=0)
        client.log_metric(dense, "loss", float("nan"), timestamp=START_MS + 1, step=1)
        for step in (1, 2, 3):
            at = START_MS + 1000 * step
            rows = [metric(key, value, at, step) for key, value in counts_row(step).items()]
            client.log_batch(first, metrics=rows)
        client.set_terminated(first, end_time=START_MS + 4000)
    return client, first


@pytest.fixture
def mlflow_alone() -> Any:
    return pytest.importorskip("mlflow")


@pytest.mark.filterwarnings("ignore")  # of its own dependencies
def test_what_mlflow_logged_into_a_database_comes_out(tmp_path: Path, mlflow_alone: Any) -> None:
    pytest.importorskip("sqlalchemy")
    write(f"sqlite:///{tmp_path}/mlflow.db")
    path = tmp_path / "mlflow.db"
    assert recognises(path)
    assert runs(path) == ["first try"]
    assert facts(translated(MlflowReader(path, Keys(), "first try"))) == facts(counts_log())


@pytest.mark.filterwarnings("ignore")
def test_a_growing_database_is_followed(tmp_path: Path, mlflow_alone: Any) -> None:
    pytest.importorskip("sqlalchemy")
    client, first = write(f"sqlite:///{tmp_path}/mlflow.db")
    reader = MlflowReader(tmp_path / "mlflow.db", Keys(), "first try")
    assert len(all_rows(reader)) == 3
    client.update_run(first, status="RUNNING")
    for step in range(4, 10):
        client.log_metric(first, "loss", 0.5, step=step)
        assert [row.step for row in all_rows(reader)] == [step]


def _golden(folder: Path) -> None:
    write(f"sqlite:///{folder}/mlflow.db")
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        wanted = [f'"{name}"' for name in TABLES] + [f" {name} " for name in TABLES]
        lines = [
            line
            for line in database.iterdump()
            if any(name in line[:60] for name in wanted) and "FOREIGN" not in line[:60]
        ]
    dump = "\n".join(lines).replace(str(Path.cwd()), "/tmp/runs")
    (GOLDEN / "mlflow.sql").write_text(dump + "\n")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        _golden(Path(folder))
    sys.exit(0)
