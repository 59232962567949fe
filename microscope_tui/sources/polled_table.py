"""Rows of named numbers from a table of a database that a writer appends to.

Every poll reads the rows after the last one. If that row is gone or has changed, the table was
rewritten and is read from the start.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from microscope_tui.runlog import BadLine, Defects, safe_text
from microscope_tui.sources.keys import Keys
from microscope_tui.sources.reader import Row, RowReader, Rows, Unreadable
from microscope_tui.sources.sqlite import Database
from microscope_tui.sources.sqlite_limits import Tables

MOST_RUNS = 1000
"""Runs of one database that are listed."""
_ROW_BYTES = 64
"""What a row costs besides its texts."""


class Run(NamedTuple):
    """A run of a database: its shown name, and what finds it."""

    label: str
    values: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Query:
    """How the rows of one run are found in the table ``metrics``."""

    order: str
    """Column that grows with every row."""
    columns: Sequence[str]
    """SQL of what is selected."""
    where: str
    values: Sequence[object]


@dataclass(slots=True)
class _Found:
    """Result of one poll, before it counts."""

    restarted: bool = False
    last: int = 0
    anchor: tuple[object, ...] | None = None
    all: bool = True
    ended: str = ""
    rows: list[Row] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)


class PolledTable(RowReader):
    """Follows the rows of one run in a table."""

    def __init__(self, path: Path, keys: Keys, run: str) -> None:
        """``run``: one of the names that ``runs`` of the format gives."""
        super().__init__(keys)
        self._path, self._run = path, run
        self._database = Database(path)
        self._begin()

    def _begin(self) -> None:
        self._seen: object = None  # version of the database that was read to its end
        self._identity: object = None
        self._last = 0
        self._anchor: tuple[object, ...] | None = None  # the last row, to notice a rewritten table
        self.defects = Defects()
        """Rows that were skipped, by their number in the table."""

    @abstractmethod
    def _query(self, tables: Tables) -> Query | None:
        """How to find the run; ``None`` while there is none. Sets ``name`` and ``config``."""

    @abstractmethod
    def _row(self, values: tuple[object, ...]) -> Row:
        """The row of the selected columns.

        Raises:
            BadLine: it is skipped for this reason.
        """

    def _ended(self, tables: Tables) -> str:
        """Why the run ended, if the database holds that."""
        return ""

    def read(self, max_bytes: int = 1 << 20) -> Rows:
        """See ``RowReader``."""
        database = self._database
        try:
            version, identity = database.version(), database.identity
        except FileNotFoundError:
            self.deleted, self.exhausted = self._identity is not None, True
            return Rows()
        self.deleted, self.modified, self.size = False, database.modified, database.size
        replaced = self._identity not in (None, identity)
        if replaced:
            self._begin()
        if version == self._seen:
            self.exhausted = True
            return Rows()
        found = database.read(lambda tables: self._after(tables, max_bytes))
        restarted = replaced or found.restarted
        if restarted:
            self._begin()
        self._identity = identity
        self._last, self._anchor = found.last, found.anchor
        for number, reason in found.bad:
            self.defects.add(number, reason)
        self.exhausted = found.all
        if found.all:
            self._seen, self.offset = version, self.size
        return Rows(found.rows, restarted, found.ended)

    def _after(self, tables: Tables, max_bytes: int) -> _Found:
        """The rows after the last one; changes nothing of the reader."""
        query = self._query(tables)
        if query is None:
            return _Found(restarted=self._anchor is not None)
        found = _Found(last=self._last, anchor=self._anchor)
        if self._anchor is not None and self._anchor_of(tables, query, self._last) != self._anchor:
            found = _Found(restarted=True)
        left = max_bytes
        columns = ", ".join((query.order, *query.columns))
        values: tuple[object, ...]
        for number, *rest in tables.rows(
            f"SELECT {columns} FROM metrics WHERE {query.order} > ? AND {query.where} "
            f"ORDER BY {query.order}",
            (found.last, *query.values),
        ):
            values = tuple(rest)
            if type(number) is not int:
                raise Unreadable(f"{safe_text(self._path.name)}: rows of metrics have no number")
            if left <= 0:
                found.all = False
                break
            left -= _ROW_BYTES + sum(len(v) for v in values if isinstance(v, bytes | str))
            found.last = number
            self._add(found, number, values)
        if found.last:
            found.anchor = self._anchor_of(tables, query, found.last)
        found.ended = self._ended(tables) if found.all else ""
        return found

    def _add(self, found: _Found, number: int, values: tuple[object, ...]) -> None:
        try:
            row = self._row(values)
        except BadLine as error:
            found.bad.append((number, str(error)))
            return
        last = found.rows[-1] if found.rows else None
        if last is not None and (last.step, last.time) == (row.step, row.time):
            last.values += row.values
        elif row.values:
            found.rows.append(row)

    @staticmethod
    def _anchor_of(tables: Tables, query: Query, number: int) -> tuple[object, ...] | None:
        where = f"{query.order} = ? AND {query.where}"
        select = f"SELECT timestamp, step FROM metrics WHERE {where}"
        return next(tables.rows(select, (number, *query.values)), None)


def unique_labels(runs: Sequence[tuple[str, str, tuple[object, ...]]]) -> list[Run]:
    """Runs with names that tell them apart: ``name``, or ``name/more`` where it is not unique.

    Args:
        runs: name, what makes it unique, and the values that find the run.
    """
    names = [safe_text(name, 120) for name, _, _ in runs]
    counts = {name: names.count(name) for name in names}
    return [
        Run(name if counts[name] == 1 and name else safe_text(f"{name}/{more}", 200), values)
        for name, (_, more, values) in zip(names, runs, strict=True)
    ]
