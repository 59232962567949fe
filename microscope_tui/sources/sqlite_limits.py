"""What a hostile SQLite database may not do: run code of its schema, or take memory and time."""

import sqlite3
import time
from collections.abc import Iterator, Sequence

from microscope_tui.sources.reader import Unreadable

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


class Tables:
    """The real tables of an open database."""

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self._connection, self._name = connection, name

    def columns(self, table: str) -> frozenset[str]:
        """Names of the stored columns of a table; none if there is no such table.

        Raises:
            Unreadable: the name belongs to a view or a virtual table.
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
        """The rows of a query, one at a time."""
        cursor = self._connection.execute(query, values)
        try:
            yield from cursor
        finally:
            cursor.close()


def restricted(connection: sqlite3.Connection, name: str) -> Tables:
    """Put every limit on a connection that has run nothing yet; ``name`` is for messages."""
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
