"""Runs in the table ``metrics`` of an SQLite database that a writer appends to.

Every poll reads the rows after the last one. If that row is gone or has changed, the table was
rewritten and is read from the start.
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from microscope_tui.runlog import BadLine, Defects, safe_text
from microscope_tui.sources.keys import (
    NUM_EXPERTS,
    TOP_K,
    Keys,
    Rule,
    as_number,
    as_step,
    as_time,
    decode_object,
    matched,
)
from microscope_tui.sources.reader import Row, RowReader, Rows, Unreadable, whole_steps
from microscope_tui.sources.sqlite import MAGIC, Busy, Database, Tables

MOST_RUNS = 1000
"""Runs of one database that are listed."""
_ROW_BYTES = 64
"""What a row costs besides its texts."""
_LEAST_PIECE = 1 << 14
"""Bytes of the smallest piece that is read at once."""
_FINDS_A_RUN = ("run_name", "run_id", "project_name")
_SAMPLE = 16
"""Rows of a run in which a reading of a router must appear."""
_MLFLOW = {
    "metrics": {"key", "value", "timestamp", "run_uuid", "step", "is_nan"},
    "latest_metrics": {"run_uuid", "key"},  # a row per run and key
    "runs": {"run_uuid", "name", "start_time", "status"},
    "params": {"run_uuid", "key", "value"},
}
"""Tables and columns of MLflow that are read."""
_MOST_KEYS = 100_000
_LARGEST = 1.7976931348623157e308
"""What MLflow stores for infinity, because some databases cannot store it."""
_REASONS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}


class Run(NamedTuple):
    """A run of a database: its shown name, and what finds it."""

    label: str
    values: tuple[object, ...]


@dataclass(slots=True)
class _Found:
    """Of one poll, which is repeated if the database changed meanwhile."""

    restarted: bool = False
    last: int = 0
    anchor: tuple[object, ...] | None = None
    all: bool = True
    ended: str = ""
    rows: list[Row] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)


class DatabaseReader(RowReader):
    """Follows the rows of one run in a table."""

    order = ""
    """Column of the table that grows with every row."""
    columns = ""
    """SQL of what is selected."""

    @classmethod
    def recognises(cls, path: Path, own: Sequence[Rule] = ()) -> bool:
        """As ``Reader.recognises``; there must also be a run with a reading of a router."""
        return super().recognises(path, own) and bool(cls.runs(path, own))

    @classmethod
    def begins(cls, head: bytes, own: Sequence[Rule]) -> bool:
        return head.startswith(MAGIC)

    @classmethod
    def runs(cls, path: Path, own: Sequence[Rule] = ()) -> list[str]:
        """Names of the runs that have readings of routers, in the order of their beginning.

        Raises:
            OSError: the file cannot be read.
            Unreadable: it is a hostile or damaged database.
        """
        found = Database(path).read(lambda tables: cls.with_routers(tables, own))
        return [run.label for run in found]

    def __init__(self, path: Path, keys: Keys, run: str = "") -> None:
        super().__init__(path, keys, run)
        self._database = Database(path)
        self._piece = 1 << 20
        self._begin()

    def _begin(self) -> None:
        self._seen: object = None  # version of the database that was read to its end
        self._identity: object = None
        self._last = 0
        self._anchor: tuple[object, ...] | None = None  # the last row, to notice a rewritten table
        # Found once: listing the runs reads the whole table, and a later run may take the name.
        self._found: Run | None = None
        self.defects = Defects()

    @classmethod
    @abstractmethod
    def all_runs(cls, tables: Tables) -> list[Run]:
        """The runs; none if this is the database of another program."""

    @classmethod
    @abstractmethod
    def with_routers(cls, tables: Tables, own: Sequence[Rule]) -> list[Run]:
        """Those of ``all_runs`` with a reading of a router; ``own``: rules of the user."""

    @classmethod
    @abstractmethod
    def _where(cls, tables: Tables) -> str:
        """SQL that is true for the rows of the run with these ``values``."""

    @abstractmethod
    def _config(self, tables: Tables, run: Run) -> Mapping[str, object]:
        """The configuration of a run, or an empty one."""

    @abstractmethod
    def _row(self, values: Sequence[object]) -> Row:
        """The row of the selected columns. ``BadLine``: it is skipped for this reason."""

    def _ended(self, tables: Tables, run: Run) -> str:
        return ""

    def read(self, max_bytes: int = 1 << 20) -> Rows:
        database = self._database
        try:
            version, identity = database.version(), database.identity
        except FileNotFoundError:
            self.deleted = self._identity is not None
            self.exhausted = True
            return Rows()
        self.deleted = False
        self.modified = database.modified
        self.size = database.size
        replaced = self._identity not in (None, identity)
        if replaced:
            self._begin()
        if version == self._seen:
            self.exhausted = True
            return Rows()
        found = database.read(lambda tables: self._piece_of(tables, max_bytes))
        self._piece *= 4
        restarted = replaced or found.restarted
        if restarted:
            self._begin()
        self._identity = identity
        self._last = found.last
        self._anchor = found.anchor
        for number, reason in found.bad:
            self.defects.add(number, reason)
        self.exhausted = found.all
        if found.all:
            self._seen = version
            self.offset = self.size
        return Rows(found.rows, restarted, found.ended)

    def sample(self, count: int) -> list[Row]:
        """See ``RowReader`` and ``whole_steps``: places are numbers of rows."""
        with suppress(FileNotFoundError, Busy, Unreadable):  # reading all of it gives the reason
            self._database.version()
            self._identity = self._database.identity
            return self._database.read(lambda tables: self._spread(tables, count))
        return []

    def _spread(self, tables: Tables, count: int) -> list[Row]:
        if (run := self._run_in(tables)) is None:
            return []
        order = self.order
        mine = f"FROM metrics WHERE {self._where(tables)}"
        query = f"SELECT {self.columns} {mine} AND {order} >= ? AND {order} < ? ORDER BY {order}"

        def rows_of(start: int, end: int) -> Iterator[Row]:
            for values in tables.rows(query, (*run.values, start, end)):
                with suppress(BadLine):
                    yield self._row(values)

        first = tables.rows(f"SELECT {order} {mine} ORDER BY {order} LIMIT 1", run.values)
        last = tables.rows(f"SELECT {order} FROM metrics ORDER BY {order} DESC LIMIT 1")
        match [number for (number,) in (*first, *last)]:
            case [int(start), int(end)]:
                return whole_steps(rows_of, start, end + 1, count, 2)
        return []

    def _run_in(self, tables: Tables) -> Run | None:
        runs = [self._found] if self._found is not None else self.all_runs(tables)
        run = next((run for run in runs if run.label == self.run), None)
        if run is not None:
            self._found = run
            self.name = run.label
            self.config = self.config or self._config(tables, run)
        return run

    def _piece_of(self, tables: Tables, max_bytes: int) -> _Found:
        """Less at every try: between two transactions of a fast writer there is little time."""
        piece = min(self._piece, max_bytes)
        self._piece = max(_LEAST_PIECE, piece // 2)
        return self._after(tables, piece)

    def _after(self, tables: Tables, max_bytes: int) -> _Found:
        """Sets only the run and its configuration: it may be called again."""
        if (run := self._run_in(tables)) is None:
            return _Found(restarted=self._anchor is not None)
        found = _Found(last=self._last, anchor=self._anchor)
        if self._anchor is not None and self._anchor_of(tables, run, self._last) != self._anchor:
            found = _Found(restarted=True)
        left = max_bytes
        for number, *values in tables.rows(
            f"SELECT {self.order}, {self.columns} FROM metrics "
            f"WHERE {self.order} > ? AND {self._where(tables)} ORDER BY {self.order}",
            (found.last, *run.values),
        ):
            if type(number) is not int:
                raise Unreadable(f"{safe_text(self.path.name)}: rows of metrics have no number")
            if left <= 0:
                found.all = False
                break
            left -= _ROW_BYTES + sum(len(v) for v in values if isinstance(v, bytes | str))
            found.last = number
            self._add(found, number, values)
        if found.last:
            found.anchor = self._anchor_of(tables, run, found.last)
        found.ended = self._ended(tables, run) if found.all else ""
        return found

    def _add(self, found: _Found, number: int, values: Sequence[object]) -> None:
        try:
            row = self._row(values)
        except BadLine as error:
            found.bad.append((number, str(error)))
            return
        last = found.rows[-1] if found.rows else None
        if last is not None and (last.step, last.time) == (row.step, row.time):
            last.add(row)
        elif row.targets:
            found.rows.append(row)

    def _anchor_of(self, tables: Tables, run: Run, number: int) -> tuple[object, ...] | None:
        where = f"{self.order} = ? AND {self._where(tables)}"
        select = f"SELECT timestamp, step FROM metrics WHERE {where}"
        return next(tables.rows(select, (number, *run.values)), None)


def _unique_labels(runs: Sequence[tuple[str, str, tuple[object, ...]]]) -> list[Run]:
    """Runs with unique names: ``name``, or ``name/more`` where it is not unique.

    Args:
        runs: Name, what makes it unique, and the values that find the run in the tables.
    """
    counts = Counter(safe_text(name, 120) for name, _, _ in runs)
    found = []
    for name, more, values in runs:
        label = safe_text(name, 120)
        if counts[label] > 1 or not label:
            label = safe_text(f"{label}/{more}", 200)
        found.append(Run(label, values))
    return found


class TrackioReader(DatabaseReader):
    """Trackio: the database of a project, a row per logged dictionary.

    The columns differ by version: older ones have ``project_name``, newer ones ``run_id``. A run is
    one by all of those, and has its name unless several runs share it.
    """

    order = "id"
    columns = "timestamp, step, CAST(metrics AS BLOB)"

    @classmethod
    def with_routers(cls, tables: Tables, own: Sequence[Rule]) -> list[Run]:
        return [run for run in cls.all_runs(tables) if cls._logs_routers(tables, run, own)]

    @classmethod
    def _logs_routers(cls, tables: Tables, run: Run, own: Sequence[Rule]) -> bool:
        keys = Keys(own)
        rows = tables.rows(
            f"SELECT CAST(metrics AS BLOB) FROM metrics WHERE {cls._where(tables)} "
            f"ORDER BY id LIMIT {_SAMPLE}",
            run.values,
        )
        found = (target for (data,) in rows for target, _ in matched(_object(data) or {}, keys))
        return any(target.of_router for target in found) or keys.has_routers

    @classmethod
    def all_runs(cls, tables: Tables) -> list[Run]:
        finding = _finding(tables)
        if not finding:
            return []
        names = ", ".join(finding)
        found = tables.rows(
            f"SELECT {names}, min(id) FROM metrics GROUP BY {names} "
            f"ORDER BY min(id) LIMIT {MOST_RUNS}"
        )
        return _unique_labels(
            [
                (str(values[0]), "/".join(map(str, reversed(values[1:-1]))), values[:-1])
                for values in found
            ]
        )

    @classmethod
    def _where(cls, tables: Tables) -> str:
        # The plus stops SQLite from using an index: rows come by their number, without a sort.
        return " AND ".join(f"+{name} IS ?" for name in _finding(tables))

    def _row(self, values: Sequence[object]) -> Row:
        at, step, data = values
        number, fields = as_step(step), _object(data)
        if number is None or fields is None:
            raise BadLine("without a step from 0, or not a JSON object")
        return Row(number, as_time(at), list(matched(fields, self.keys)))

    def _config(self, tables: Tables, run: Run) -> Mapping[str, object]:
        finding = zip(_finding(tables), run.values, strict=True)
        known = tables.columns("configs")
        usable = [(name, value) for name, value in finding if name in known]
        if not usable:
            return {}
        rows = tables.rows(
            "SELECT CAST(config AS BLOB) FROM configs WHERE "
            + " AND ".join(f"{name} IS ?" for name, _ in usable)
            + " LIMIT 1",
            [value for _, value in usable],
        )
        (data,) = next(rows, (None,))
        return _object(data) or {}


def _finding(tables: Tables) -> list[str]:
    columns = tables.columns("metrics")
    is_trackio = {"id", "run_name", "timestamp", "step", "metrics"} <= columns
    return [name for name in _FINDS_A_RUN if name in columns] if is_trackio else []


def _object(data: object) -> dict[str, object] | None:
    return decode_object(data) if isinstance(data, bytes) else None


class MlflowReader(DatabaseReader):
    """MLflow: one value per metric, step and time; E and k come from the run's parameters."""

    order = "rowid"
    columns = "key, value, timestamp, step, is_nan"

    @classmethod
    def with_routers(cls, tables: Tables, own: Sequence[Rule]) -> list[Run]:
        runs = cls.all_runs(tables)
        if not runs:
            return []
        keys = Keys(own)
        found: set[object] = set()
        query = f"SELECT DISTINCT run_uuid, key FROM latest_metrics LIMIT {_MOST_KEYS}"
        for run, key in tables.rows(query):
            target = keys[key] if isinstance(key, str) else None
            if target is not None and target.of_router:
                found.add(run)
        return [run for run in runs if run.values[0] in found]

    @classmethod
    def all_runs(cls, tables: Tables) -> list[Run]:
        if not all(tables.columns(table) >= columns for table, columns in _MLFLOW.items()):
            return []
        deleted = "lifecycle_stage" in tables.columns("runs")
        kept = "WHERE lifecycle_stage IS NOT 'deleted'" if deleted else ""
        pairs = tables.rows(
            f"SELECT run_uuid, name FROM runs {kept} ORDER BY start_time, run_uuid "
            f"LIMIT {MOST_RUNS}"
        )
        return _unique_labels([(str(name or ""), str(run), (run,)) for run, name in pairs])

    @classmethod
    def _where(cls, tables: Tables) -> str:
        # The plus stops SQLite from using an index: rows come in the order of writing.
        return "+run_uuid = ?"

    def _row(self, values: Sequence[object]) -> Row:
        key, value, at, step, is_nan = values
        number = as_step(step)
        if number is None or not isinstance(key, str):
            raise BadLine("without a step from 0, or without a key")
        target = self.keys[key]
        measured = float("nan") if is_nan else as_number(value)
        if target is not None and measured is not None:
            if abs(measured) >= _LARGEST:
                measured *= 2.0  # it was logged as infinity
            return Row(number, as_time(at), [(target, measured)])
        return Row(number, as_time(at))

    def _ended(self, tables: Tables, run: Run) -> str:
        found = tables.rows("SELECT status FROM runs WHERE run_uuid = ?", run.values)
        (status,) = next(found, ("",))
        return _REASONS.get(str(status), "")

    def _config(self, tables: Tables, run: Run) -> Mapping[str, object]:
        wanted = tuple(f"%{name}" for name in (*NUM_EXPERTS, *TOP_K))
        pairs = tables.rows(
            "SELECT key, value FROM params WHERE run_uuid = ? AND ("
            + " OR ".join(["key LIKE ?"] * len(wanted))
            + ") LIMIT 100",
            (*run.values, *wanted),
        )
        return {str(key): int(value) for key, value in pairs if str(value).isdecimal()}  # type: ignore[call-overload]
