"""Reads an SQLite database that another program may be writing, and that may be hostile.

SQLite itself never opens the database in a way that takes a lock or makes a file beside it:

- Without a ``-wal`` beside it, it is opened as ``immutable``. What was read counts only if the file
  is unchanged afterwards (size, time, change counter); else it is read again.
- With one, database and log are copied to a private folder. The pair is consistent if the header
  of the ``-wal`` is the same before and after: a writer only appends under one header, and every
  page that it moves into the database is still in the log.
- A ``-journal`` is a transaction: it is waited for. One that died is refused.

A hostile database cannot run code of its schema, or take memory and time: see ``_restricted``.
"""

import os
import shutil
import sqlite3
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import quote

from microscope_tui.runlog import QUIET_S, Stamp, opened, safe_text, stamp_of
from microscope_tui.sources.reader import Unreadable

MAGIC = b"SQLite format 3\0"
MOST_COPIED = 4 << 30
"""Bytes that are copied; a larger database can be read once its writer has closed it."""
TRIES = 5
BETWEEN_TRIES_S = 0.02
"""A transaction of a logger takes a few milliseconds."""
DEADLINE_S = 5.0
"""Time for all queries of one reading; an honest one of a megabyte takes milliseconds."""
MOST_VALUE_BYTES = 8 << 20
"""Longest text or blob; as long as a line of JSON may be."""
MOST_HEAP_BYTES = 256 << 20
"""Memory of SQLite in this process, which uses it for nothing else."""
_CHECK_EVERY = 1000
"""Instructions of SQLite between two looks at the clock: well below a millisecond."""
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: MOST_VALUE_BYTES,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 1 << 20,
    sqlite3.SQLITE_LIMIT_COLUMN: 200,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 50,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 3,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_SETTINGS = (
    "trusted_schema=OFF",  # functions in the schema run only if they are harmless
    "cell_size_check=ON",
    "mmap_size=0",  # a file that shrinks must not end the process
    "temp_store=MEMORY",
    "query_only=ON",
    f"hard_heap_limit={MOST_HEAP_BYTES}",
)
_FUNCTIONS = ("min", "like")
_ALLOWED = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ)
_WAL_HEADER = 32
Result = TypeVar("Result")


class _State(NamedTuple):
    stamp: Stamp
    head: bytes


_Version = tuple[_State, _State | None, _State | None]
"""Of the database, its ``-wal`` and its ``-journal``, where those hold anything."""


class Busy(BlockingIOError):
    """The writer changed the database during every try; a later one will succeed.

    Callers that must not load SQLite catch the ``BlockingIOError``.
    """


class Database:
    """One database; ``read`` gives its tables as they were at one moment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.modified: float | None = None
        """Time of the last change of the database or of its log."""
        self.identity: tuple[int, ...] = ()
        """Changes if another file was put under the name."""
        self._folder: Path | None = None
        self._opened: _Version | None = None  # of the file that is read in place
        self._copied: object = None  # header of the log that the private copy belongs to

    def version(self) -> _Version:
        """The state of the file and its logs, equal as long as nothing was written.

        Also updates ``size``, ``identity`` and ``modified``.

        Raises:
            FileNotFoundError: the database is gone.
            OSError: it cannot be read.
        """
        database = _state(self.path, 100)
        wal = self._log("-wal")
        journal = self._log("-journal")
        stamps = [state.stamp for state in (database, wal, journal) if state is not None]
        self.size, self.identity = database.stamp.size, database.stamp[:2]
        self.modified = max(stamp.modified_ns for stamp in stamps) / 1e9
        return database, wal, journal

    def read(self, use: "Callable[[Tables], Result]") -> Result:
        """What ``use`` returns for the tables of one moment; ``use`` may be called several times.

        Raises:
            Busy: a writer changed the file during every try.
            Unreadable: the file is damaged, too large to be copied, or its writer died in a
                transaction.
        """
        for attempt in range(TRIES):
            if attempt:
                time.sleep(BETWEEN_TRIES_S)
            with suppress(Busy), self._reading() as tables:
                result = use(tables)
                if self._is_unchanged():
                    return result
        raise Busy(f"{safe_text(self.path.name)}: written during {TRIES} readings; try again")

    @contextmanager
    def _reading(self) -> "Iterator[Tables]":
        before = self.version()
        _, wal, journal = before
        name = safe_text(self.path.name)
        if journal is not None:
            if time.time() - (self.modified or 0.0) < QUIET_S:
                raise Busy(f"{name}: within a transaction; try again")
            raise Unreadable(
                f"{name}: its writer died in a transaction; open it once with sqlite3 to end that"
            )
        if wal is not None:
            self._opened = None
            place = f"{quote(os.fsencode(self._private_copy()))}?mode=ro"
        else:
            self._opened = before
            self._forget_copy()
            place = f"{quote(os.fsencode(self.path.absolute()))}?mode=ro&immutable=1"
        with _readable(self.path):
            connection = sqlite3.connect(f"file:{place}", uri=True, isolation_level=None, timeout=0)
        with closing(connection), _readable(self.path, self._may_have_changed):
            yield _restricted(connection, name)

    def _is_unchanged(self) -> bool:
        """Whether the tables belonged together up to now; those of a private copy do."""
        return self._opened is None or self.version() == self._opened

    def _may_have_changed(self) -> bool:
        with suppress(OSError):
            return not self._is_unchanged()
        return True

    def _log(self, suffix: str) -> _State | None:
        """State of a file beside the database; ``None`` if there is none with content."""
        try:
            state = _state(self._beside(suffix), _WAL_HEADER)
        except FileNotFoundError:
            return None
        return state if state.head.strip(b"\0") else None  # zeros: a journal kept for reuse

    def _private_copy(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="moe-microscope-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        place = self._folder / "copy.db"
        before = self._copy_state()
        if before != self._copied:
            self._copied = None
            self._copy(self.path, place)
        (self._folder / "copy.db-shm").unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            self._copy(self._beside("-wal"), self._folder / "copy.db-wal")
        if before is None or self._copy_state() != before:
            raise Busy(f"{safe_text(self.path.name)}: written while it was copied; try again")
        self._copied = before
        return place

    def _copy_state(self) -> object:
        """What must not change during a copy: the header of the ``-wal``; ``None`` without it."""
        _, wal, _ = self.version()
        return None if wal is None else (self.identity, wal.stamp[:2], wal.head)

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _copy(self, source: Path, target: Path) -> None:
        with opened(source) as file, open(file, "rb", closefd=False) as readable:
            size = os.fstat(file).st_size
            if size > min(MOST_COPIED, shutil.disk_usage(target.parent).free // 2):
                raise Unreadable(
                    f"{safe_text(source.name)}: {size:,} bytes are too many to copy to "
                    f"{target.parent}; end its writer, or set TMPDIR"
                )
            with open(target, "wb") as writable:
                shutil.copyfileobj(readable, writable, 1 << 20)

    def _forget_copy(self) -> None:
        if self._copied:
            assert self._folder is not None
            for file in self._folder.iterdir():
                file.unlink()
        self._copied = None


def _state(path: Path, head: int) -> _State:
    with opened(path) as file:
        return _State(stamp_of(os.fstat(file)), os.pread(file, head, 0))


@contextmanager
def _readable(path: Path, changed: Callable[[], bool] = lambda: False) -> Iterator[None]:
    name = safe_text(path.name)
    try:
        yield
    except (sqlite3.Error, MemoryError, OverflowError, UnicodeDecodeError) as error:
        # The last one: Python expects UTF-8 also of a message that quotes a damaged schema.
        if changed():
            raise Busy(f"{name}: written while it was read; try again") from error
        why = safe_text(str(error)) or type(error).__name__
        raise Unreadable(f"{name}: cannot be read as an SQLite database: {why}") from error


class Tables:
    """The real tables of an open database."""

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self._connection, self._name = connection, name

    def columns(self, table: str) -> frozenset[str]:
        """Names of the stored columns of a table; none if there is no such table.

        ``Unreadable``: the name belongs to a view or a virtual table.
        """
        found = self.rows(
            "SELECT type, rootpage FROM sqlite_master WHERE name = ? COLLATE NOCASE", (table,)
        )
        kinds = list(found)
        if not kinds:
            return frozenset()
        if any(kind != "table" or not page for kind, page in kinds):
            raise Unreadable(
                f"{self._name}: {table} is a view or a virtual table, not a table; "
                "only tables are read"
            )
        info = self.rows(f"PRAGMA table_info({table})")  # leaves out columns that are computed
        return frozenset(column[1] for column in info if isinstance(column[1], str))

    def rows(self, query: str, values: Sequence[object] = ()) -> Iterator[tuple[object, ...]]:
        """The rows of ``query``, whose ``?`` stand for ``values``; valid only inside
        ``Database.read``.
        """
        with closing(self._connection.execute(query, values)) as cursor:
            yield from cursor


def _restricted(connection: sqlite3.Connection, name: str) -> Tables:
    """Put every limit on a connection that has not run a query yet; ``name`` is for messages."""
    for limit, value in _LIMITS.items():
        connection.setlimit(limit, value)
    end = time.monotonic() + DEADLINE_S
    connection.set_progress_handler(lambda: int(time.monotonic() > end), _CHECK_EVERY)
    for setting in _SETTINGS:
        connection.execute(f"PRAGMA {setting}").close()
    connection.set_authorizer(_authorised)
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    return Tables(connection, name)


def _authorised(
    action: int, first: str | None, second: str | None, _: str | None, within: str | None
) -> int:
    """Queries may select from tables and ask for their columns, nothing else."""
    allowed = action in _ALLOWED and within is None  # else a view or a trigger asks
    if action == sqlite3.SQLITE_PRAGMA:
        allowed = first == "table_info"
    if action == sqlite3.SQLITE_FUNCTION:
        allowed = second in _FUNCTIONS
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY
