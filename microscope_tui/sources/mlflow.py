"""MLflow: a run in its SQLite database, one value per metric, step and time.

E and k come from the run's parameters. Its folders of text files are not read: MLflow itself moves
them into a database.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from microscope_tui.runlog import BadLine
from microscope_tui.sources.header import NUM_EXPERTS, TOP_K
from microscope_tui.sources.keys import Keys, Rule
from microscope_tui.sources.named_numbers import as_number, as_step, as_time
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

_NEEDED = {"key", "value", "timestamp", "run_uuid", "step", "is_nan"}
_MOST_KEYS = 100_000
_LARGEST = 1.7976931348623157e308
"""What MLflow stores for infinity, because some databases have none."""
_REASONS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}


def recognises(path: Path, own: Sequence[Rule] = ()) -> bool:
    """Whether it is a database of MLflow with a reading of a router.

    Raises:
        OSError: it cannot be read, or is a hostile database.
    """
    return is_database(path) and bool(runs(path, own))


def runs(path: Path, own: Sequence[Rule] = ()) -> list[str]:
    """Names of the runs of a database that have readings of routers, in order of their ids.

    Raises:
        OSError: the file cannot be read, or is a hostile database.
    """
    return [run.label for run in Database(path).read(partial(_with_routers, own=own))]


def _with_routers(tables: Tables, own: Sequence[Rule]) -> list[Run]:
    if not tables.columns("metrics") >= _NEEDED:
        return []
    latest = {"run_uuid", "key"} <= tables.columns("latest_metrics")  # a row per run and key
    table = "latest_metrics" if latest else "metrics"
    keys = Keys(own)
    found: set[object] = set()
    pairs = tables.rows(f"SELECT DISTINCT run_uuid, key FROM {table} LIMIT {_MOST_KEYS}")
    for run, key in pairs:
        target = keys[key] if isinstance(key, str) else None
        if target is not None and target.of_router:
            found.add(run)
    return [run for run in _runs(tables) if run.values[0] in found]


def _runs(tables: Tables) -> list[Run]:
    if "name" in tables.columns("runs"):
        pairs = tables.rows(
            f"SELECT run_uuid, name FROM runs ORDER BY start_time, run_uuid LIMIT {MOST_RUNS}"
        )
    else:
        pairs = tables.rows(
            f"SELECT DISTINCT run_uuid, run_uuid FROM metrics ORDER BY 1 LIMIT {MOST_RUNS}"
        )
    return unique_labels([(str(name or ""), str(run), (run,)) for run, name in pairs])


class MlflowDatabaseReader(PolledTable):
    """The metrics of one run in a database; ``run`` is one of ``runs``."""

    def _begin(self) -> None:
        super()._begin()
        self._found: Run | None = None

    def _query(self, tables: Tables) -> Query | None:
        if not tables.columns("metrics") >= _NEEDED:
            return None
        run = self._found or next((r for r in _runs(tables) if r.label == self._run), None)
        if run is None:
            return None
        self._found, self.name = run, run.label
        self.config = self.config or _parameters(tables, run)
        columns = ("key", "value", "timestamp", "step", "is_nan")
        # The plus keeps SQLite from an index: rows come in the order in which they were written.
        return Query("rowid", columns, "+run_uuid = ?", run.values)

    def _row(self, values: tuple[object, ...]) -> Row:
        key, value, at, step, is_nan = values
        number = as_step(step)
        if number is None or not isinstance(key, str):
            raise BadLine("without a step from 0, or without a key")
        row = Row(number, as_time(at))
        target = self.keys[key]
        measured = float("nan") if is_nan else as_number(value)
        if target is not None and measured is not None:
            if abs(measured) >= _LARGEST:
                measured *= 2.0  # the infinity that it stands for
            row.values.append((target, measured))
        return row

    def _ended(self, tables: Tables) -> str:
        if self._found is None or "status" not in tables.columns("runs"):
            return ""
        found = tables.rows("SELECT status FROM runs WHERE run_uuid = ?", self._found.values)
        (status,) = next(found, ("",))
        return _REASONS.get(str(status), "")


def _parameters(tables: Tables, run: Run) -> Mapping[str, object]:
    """The parameters of a run that name E or k."""
    if not tables.columns("params") >= {"key", "value", "run_uuid"}:
        return {}
    wanted = tuple(f"%{name}" for name in (*NUM_EXPERTS, *TOP_K))
    pairs = tables.rows(
        "SELECT key, value FROM params WHERE run_uuid = ? AND ("
        + " OR ".join(["key LIKE ?"] * len(wanted))
        + ") LIMIT 100",
        (*run.values, *wanted),
    )
    return {str(key): int(value) for key, value in pairs if str(value).isdecimal()}  # type: ignore[call-overload]
