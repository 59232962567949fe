"""Trackio: the SQLite database of a project, a row of the table ``metrics`` per logged dictionary.

The columns differ by version: older ones have ``project_name``, newer ones ``run_id``. A run is one
by all of those, and has its name unless several runs share it.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from microscope_tui.runlog import BadLine
from microscope_tui.sources.keys import Keys, Rule
from microscope_tui.sources.named_numbers import as_step, as_time, decode_object, matched
from microscope_tui.sources.polled_table import (
    MOST_RUNS,
    PolledTable,
    Query,
    Run,
    unique_labels,
)
from microscope_tui.sources.reader import Row
from microscope_tui.sources.sqlite import Database, is_database
from microscope_tui.sources.sqlite_limits import Tables

_FINDS_A_RUN = ("run_name", "run_id", "project_name")
_SAMPLE = 16
"""Rows of a run in which a reading of a router must appear."""


def recognises(path: Path, own: Sequence[Rule] = ()) -> bool:
    """Whether the file is a Trackio database with a run that has a reading of a router.

    Raises:
        OSError: the file cannot be read, or is a hostile database.
    """
    return is_database(path) and bool(runs(path, own))


def runs(path: Path, own: Sequence[Rule] = ()) -> list[str]:
    """Names of the runs that have readings of routers, in the order in which they began.

    Raises:
        OSError: the file cannot be read, or is a hostile database.
    """
    return [run.label for run in Database(path).read(partial(_with_routers, own=own))]


def _with_routers(tables: Tables, own: Sequence[Rule]) -> list[Run]:
    return [run for run in _runs(tables) if _has_routers(tables, run, Keys(own))]


def _finding(tables: Tables) -> list[str]:
    """The columns that find a run; none if this is another database."""
    columns = tables.columns("metrics")
    is_trackio = {"id", "run_name", "timestamp", "step", "metrics"} <= columns
    return [name for name in _FINDS_A_RUN if name in columns] if is_trackio else []


def _runs(tables: Tables) -> list[Run]:
    finding = _finding(tables)
    if not finding:
        return []
    names = ", ".join(finding)
    found = tables.rows(
        f"SELECT {names}, min(id) FROM metrics GROUP BY {names} ORDER BY min(id) LIMIT {MOST_RUNS}"
    )
    return unique_labels(
        [
            (str(values[0]), "/".join(map(str, reversed(values[1:-1]))), values[:-1])
            for values in found
        ]
    )


def _where(tables: Tables) -> str:
    # The plus keeps SQLite from an index: rows come by their number, without a sort.
    return " AND ".join(f"+{name} IS ?" for name in _finding(tables))


def _has_routers(tables: Tables, run: Run, keys: Keys) -> bool:
    where = _where(tables)
    rows = tables.rows(
        f"SELECT CAST(metrics AS BLOB) FROM metrics WHERE {where} ORDER BY id LIMIT {_SAMPLE}",
        run.values,
    )
    for (data,) in rows:
        fields = decode_object(data) if isinstance(data, bytes) else None
        if any(target.of_router for target, _ in matched(fields or {}, keys)):
            return True
    return False


class TrackioReader(PolledTable):
    """The rows of one run; ``run`` is one of ``runs``."""

    def _begin(self) -> None:
        super()._begin()
        self._found: Run | None = None

    def _query(self, tables: Tables) -> Query | None:
        # Found once: listing the runs reads the whole table, and a later run may take the name.
        run = self._found or next((r for r in _runs(tables) if r.label == self._run), None)
        if run is None:
            return None
        self._found, self.name = run, run.label
        self.config = self.config or _config(tables, run)
        columns = ("timestamp", "step", "CAST(metrics AS BLOB)")
        return Query("id", columns, _where(tables), run.values)

    def _row(self, values: tuple[object, ...]) -> Row:
        at, step, data = values
        number = as_step(step)
        fields = decode_object(data) if isinstance(data, bytes) else None
        if number is None or fields is None:
            raise BadLine("without a step from 0, or not a JSON object")
        return Row(number, as_time(at), list(matched(fields, self.keys)))


def _config(tables: Tables, run: Run) -> dict[str, object]:
    """The configuration of a run, or an empty one."""
    finding = zip(_finding(tables), run.values, strict=True)
    known = tables.columns("configs")
    if "config" not in known:
        return {}
    usable = [(name, value) for name, value in finding if name in known]
    rows = tables.rows(
        "SELECT CAST(config AS BLOB) FROM configs WHERE "
        + " AND ".join(f"{name} IS ?" for name, _ in usable)
        + " LIMIT 1",
        [value for _, value in usable],
    )
    (data,) = next(rows, (None,)) if usable else (None,)
    return (decode_object(data) if isinstance(data, bytes) else None) or {}
