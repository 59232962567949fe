"""Reading SQLite beside its writer, and reading a hostile database."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.sources import Unreadable, sqlite
from microscope_tui.sources.sqlite import Busy, Database, Tables
from tests.sources.reading import settle
from tests.sources.sqlite_writer import Writer, made

CREATE = "CREATE TABLE metrics (id INTEGER PRIMARY KEY, step INTEGER, metrics TEXT)"


def steps(tables: Tables) -> list[object]:
    tables.columns("metrics")
    return [step for (step,) in tables.rows("SELECT step FROM metrics ORDER BY id")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder / "moe.db"


@pytest.fixture(params=["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "WAL"])
def writer(path: Path, request: pytest.FixtureRequest) -> Iterator[Writer]:
    with Writer(path) as writer:
        writer.run(f"PRAGMA journal_mode={request.param}", CREATE)
        yield writer


def insert(step: int) -> list[object]:
    return ["INSERT INTO metrics (step, metrics) VALUES (?, ?)", [step, "x" * 500]]


def files(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.parent.iterdir()}


def test_commits_of_an_open_writer_are_seen_without_a_lock(writer: Writer, path: Path) -> None:
    database = Database(path)
    for step in range(8):
        writer.run(insert(step))  # fails at once if it finds a lock
        before = files(path)
        assert database.read(steps) == list(range(step + 1))
        assert files(path) == before


def test_reading_within_a_transaction_gives_the_state_before_it(writer: Writer, path: Path) -> None:
    writer.run(insert(0), "BEGIN IMMEDIATE", insert(1))
    database = Database(path)
    with suppress(Busy):  # a journal of this moment: the next poll reads
        assert database.read(steps) == [0]
    writer.run("COMMIT")
    assert database.read(steps) == [0, 1]


def test_a_log_that_a_killed_writer_left_is_read_and_stays(path: Path) -> None:
    writer = Writer(path)
    writer.run("PRAGMA journal_mode=WAL", CREATE, *(insert(step) for step in range(5)))
    writer.kill()
    (path.parent / "moe.db-shm").unlink()  # as after a copy to another machine
    before = files(path)
    assert set(before) == {"moe.db", "moe.db-wal"}
    assert Database(path).read(steps) == [0, 1, 2, 3, 4]
    assert files(path) == before


def test_a_transaction_that_died_is_refused_with_what_to_do(path: Path) -> None:
    writer = Writer(path)
    writer.run(CREATE, *(insert(step) for step in range(50)), "PRAGMA cache_size=1")
    writer.run("BEGIN", "UPDATE metrics SET step = -1, metrics = hex(zeroblob(3000))")
    writer.kill()
    assert (path.parent / "moe.db-journal").stat().st_size > 0
    settle(path.parent)
    before = files(path)
    with pytest.raises(Unreadable, match="open it once with sqlite3"):
        Database(path).read(steps)
    assert files(path) == before


def test_not_every_commit_copies_the_database(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []
    copy = shutil.copyfileobj
    monkeypatch.setattr(
        shutil, "copyfileobj", lambda a, b, n: (copied.append(Path(b.name).name), copy(a, b, n))
    )
    with Writer(path) as writer:
        writer.run("PRAGMA journal_mode=WAL", CREATE)
        database = Database(path)
        for step in range(5):
            writer.run(insert(step))
            assert len(database.read(steps)) == step + 1
        assert copied.count("copy.db") == 1
        writer.run("PRAGMA wal_checkpoint(TRUNCATE)", insert(5))
        assert len(database.read(steps)) == 6
        assert copied.count("copy.db") == 2


def test_the_private_copy_disappears_with_the_reader(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Writer(path) as writer:
        writer.run("PRAGMA journal_mode=WAL", CREATE, insert(0))
        database = Database(path)
        database.read(steps)
    (folder,) = tmp_path.glob("moe-microscope-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert database.read(steps) == [0]  # the writer has closed it: it is read in place again
    assert not list(folder.iterdir())
    del database
    assert not folder.exists()


def test_a_write_during_a_reading_is_noticed(path: Path) -> None:
    with Writer(path) as writer:
        writer.run(CREATE, insert(0))
        calls = 0

        def use(tables: Tables) -> list[object]:
            nonlocal calls
            found = steps(tables)
            calls += 1
            if calls < 3:
                writer.run(insert(calls))
            return found

        assert Database(path).read(use) == [0, 1, 2]
        assert calls == 3


def test_too_many_bytes_to_copy_are_refused_with_what_to_do(path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sqlite, "MOST_COPIED", 1000)
    with Writer(path) as writer:
        writer.run("PRAGMA journal_mode=WAL", CREATE, insert(0))
        with pytest.raises(Unreadable, match=r"moe.db.*: [\d,]+ bytes are too many to copy"):
            Database(path).read(steps)


@pytest.mark.parametrize(
    "statements",
    [
        ("CREATE TABLE x (id, step, metrics)", "CREATE VIEW metrics AS SELECT * FROM x"),
        ("CREATE VIEW Metrics AS SELECT 1 AS id, 2 AS step, 3 AS metrics",),
        ("CREATE VIRTUAL TABLE metrics USING fts5(id, step)",),
    ],
)
def test_views_and_virtual_tables_are_refused(path: Path, statements: tuple[str, ...]) -> None:
    with pytest.raises(Unreadable, match=r"moe.db: metrics is a view or a virtual table"):
        Database(made(path, *statements)).read(lambda tables: tables.columns("metrics"))


def test_computed_columns_are_not_columns(path: Path) -> None:
    made(path, "CREATE TABLE metrics (id INTEGER, step INTEGER AS (id * 2) VIRTUAL)")
    assert Database(path).read(lambda tables: tables.columns("metrics")) == {"id"}


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM metrics",
        "ATTACH DATABASE '/tmp/x.db' AS x",
        "PRAGMA journal_mode=WAL",
        "SELECT load_extension('x')",
        "SELECT randomblob(1000000000)",
        "CREATE TEMP TABLE x (y)",
    ],
)
def test_nothing_but_selecting_is_allowed(path: Path, statement: str) -> None:
    made(path, CREATE)
    with pytest.raises(Unreadable, match=r"not authorized|prohibited"):
        Database(path).read(lambda tables: list(tables.rows(statement)))


def test_a_query_without_end_is_stopped(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "DEADLINE_S", 0.2)
    made(path, CREATE, *["INSERT INTO metrics (step) VALUES (1)"] * 2000)
    endless = "SELECT min(a.id + b.id + c.id) FROM metrics a, metrics b, metrics c"
    begin = time.monotonic()
    with pytest.raises(Unreadable, match="interrupted"):
        Database(path).read(lambda tables: list(tables.rows(endless)))
    assert time.monotonic() - begin < 2.0


def test_text_that_is_not_utf8_is_shown_not_raised(path: Path) -> None:
    made(path, CREATE, "INSERT INTO metrics (metrics) VALUES (CAST(x'ff41' AS TEXT))")
    rows = Database(path).read(lambda tables: list(tables.rows("SELECT metrics FROM metrics")))
    assert rows == [("\N{REPLACEMENT CHARACTER}A",)]
