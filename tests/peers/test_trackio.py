"""Trackio itself writes; the reader gives back what was logged.

``python -m tests.peers.test_trackio`` writes ``tests/sources/golden/trackio.sql`` again.
"""

import importlib
import re
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.probe import Alert, MicroscopeCallback
from microscope_tui.sources import Keys, TrackioReader
from tests.sources.reading import all_rows, translated
from tests.sources.sound import counts_row
from tests.sources.test_equal_to_run_logs import counts_log, facts

recognises, runs = TrackioReader.recognises, TrackioReader.runs

GOLDEN = Path(__file__).parents[1] / "sources" / "golden"


def write(folder: Path) -> Path:
    """Two runs of three steps as Trackio writes them, the second without routers."""
    environment = {"TRACKIO_DIR": str(folder), "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        storage: Any = importlib.import_module("trackio.sqlite_storage")
        patch.setattr(storage, "TRACKIO_DIR", folder)
        log = storage.SQLiteStorage.bulk_log
        config = {"model": {"num_experts": 4}, "num_experts_per_tok": 2, "_Username": "secret"}
        log(
            "moe",
            "first",
            [counts_row(step) for step in (1, 2)],
            steps=[1, 2],
            config=config,
            run_id="r1",
        )
        log("moe", "dense", [{"loss": 1.0, "acc": float("nan")}], steps=[1], run_id="r2")
        log("moe", "first", [counts_row(3)], steps=[3], run_id="r1")
    (path,) = folder.rglob("moe.db")
    return path


def test_what_trackio_logged_comes_out(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    path = write(tmp_path)
    assert recognises(path)
    assert runs(path) == ["first"]
    assert facts(translated(TrackioReader(path, Keys(), "first"))) == facts(counts_log())


def test_a_growing_project_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    path = write(tmp_path)
    reader = TrackioReader(path, Keys(), "first")
    assert len(all_rows(reader)) == 3
    storage: Any = importlib.import_module("trackio.sqlite_storage")
    monkeypatch.setattr(storage, "TRACKIO_DIR", tmp_path)
    for step in range(4, 12):
        storage.SQLiteStorage.bulk_log("moe", "first", [{"loss": 0.5}], steps=[step], run_id="r1")
        assert [row.step for row in all_rows(reader)] == [step]


def test_a_critical_finding_of_the_callback_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trackio = pytest.importorskip("trackio")
    storage: Any = importlib.import_module("trackio.sqlite_storage")
    monkeypatch.setattr(storage, "TRACKIO_DIR", tmp_path)
    trackio.init(project="moe", name="run")
    alert = Alert(9, "COLLAPSE", "crit", ("L1",), 3, "Collapse in L1", "why", "what to do")
    MicroscopeCallback(alerts=True)._alarm(alert)
    trackio.finish()
    (stored,) = storage.SQLiteStorage.get_alerts("moe")
    assert (stored["level"], stored["title"]) == ("error", "MoE router: COLLAPSE")
    assert stored["text"].startswith("Collapse in L1. ")


if __name__ == "__main__":
    import tempfile

    with (
        tempfile.TemporaryDirectory() as folder,
        closing(sqlite3.connect(write(Path(folder)))) as database,
    ):
        wanted = re.compile(
            r"CREATE TABLE (metrics|configs) |INSERT INTO \"(metrics|configs)\""
            r"|.*\n?.* ON (metrics|configs)\("
        )
        dump = [line for line in database.iterdump() if wanted.match(line)]
    (GOLDEN / "trackio.sql").write_text("\n".join(dump) + "\n")
    sys.exit(0)
