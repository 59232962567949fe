"""The whole history of a run in bounded memory: a pyramid of low / mean / high over its steps.

A row covers ``stride`` steps. When the rows reach their capacity, neighbours merge in pairs
(``halved``) and every row covers twice as many steps from then on. A new row begins at a restart,
and each knows where in the file its first record stands, so that any step can be found again.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from microscope_tui.watch.curve import BYTES_PER_ROW, COARSE, NAN, Column, Series

MAX_ROWS = 8192
MIN_ROWS = 256
_NEVER = 2**63
_BATCH = 64  # steps that are taken in together: one pass over 64 values costs little more than one

Values = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Row:
    """Start of one row: step number and byte offset of the first record."""

    step: int
    offset: int
    time: float = NAN
    after: int = _NEVER
    """The first step after it."""
    end: int | None = None
    """Where the next row begins; ``None`` for the last."""
    restart: int | None = None
    """Step at which the run restarted: later steps in the file may be superseded."""


def rows_within(memory_bytes: int, curves: int) -> int:
    """Number of rows of that many curves that fit in ``memory_bytes``, within bounds."""
    rows = int(memory_bytes / (BYTES_PER_ROW * max(1, curves) + 24))
    return max(MIN_ROWS, min(MAX_ROWS, rows)) // (2 * COARSE) * (2 * COARSE)


class History:
    """Named series over one axis of steps.

    ``add`` is cheap and invisible until ``commit``: readers see only what was committed, so one
    thread may add while another, under a lock that ``commit`` is called in too, draws.
    """

    def __init__(
        self, widths: Mapping[str, int], capacity: int = MAX_ROWS, stride: int = 1
    ) -> None:
        """``widths``: values per step of each series; ``stride``: steps a row, to begin with."""
        self.steps = array("q")
        """First step of each row."""
        self.offsets = array("q")
        """Byte offset of the first record of each row."""
        self.times = array("d")
        """Unix time of the first record of each row; NaN where it has none."""
        self.last_step = 0
        self.restarts: list[int] = []
        self.capacity = capacity
        self.stride = stride
        self._curves = {name: [Series() for _ in range(width)] for name, width in widths.items()}
        self._pending: list[Mapping[str, Values]] = []
        self._opened: list[Row] = []  # rows that begin in what is pending …
        self._older = 0  # … after this many steps that still belong to the last visible row
        self._in_row = stride  # steps in the last row, pending ones included
        self._committed_in_row = 0

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def full(self) -> bool:
        """Whether the number of rows has reached the capacity: call ``halved``."""
        return len(self.steps) >= self.capacity

    def add(
        self,
        step: int,
        values: Mapping[str, Values],
        offset: int = 0,
        time: float | None = None,
    ) -> None:
        """Add one step.

        Raises:
            ValueError: ``step`` is not after the last one; call ``restart`` first.
        """
        if step <= self.last_step and (self.steps or self._pending):
            raise ValueError(f"step {step} after step {self.last_step}: restart the history first")
        if self._in_row >= self.stride:
            self._older = self._older if self._opened else len(self._pending)
            self._opened.append(Row(step, offset, NAN if time is None else time))
            self._in_row = 0
        self._in_row += 1
        self._pending.append(values)
        self.last_step = step
        if len(self._pending) >= _BATCH:
            self.commit()

    def commit(self) -> bool:
        """Make added steps visible; true if there were any."""
        if not self._pending:
            return False
        older = self._older if self._opened else len(self._pending)
        for name, curves in self._curves.items():
            columns = zip(*(values[name] for values in self._pending), strict=True)
            for curve, column in zip(curves, columns, strict=True):
                if older:
                    curve.fold(column[:older], self._committed_in_row)
                if older < len(column):
                    curve.extend(column[older:], self.stride)
        self._committed_in_row = self._in_row
        self.steps.extend(row.step for row in self._opened)
        self.offsets.extend(row.offset for row in self._opened)
        self.times.extend(row.time for row in self._opened)
        self._pending, self._opened = [], []
        complete = len(self.steps) - (self._in_row < self.stride)
        if complete // COARSE > self._coarse_rows():
            for curves in self._curves.values():
                for curve in curves:
                    curve.keep_coarse(complete)
        return True

    def restart(self, step: int) -> Row | None:
        """Drop everything from ``step`` on and remember that the run restarted there.

        Returns the row that covered steps on both sides: it is dropped whole, and its steps
        before ``step`` are to be read again from the file and added.
        """
        self.commit()
        rows = bisect_left(self.steps, step)
        upto = self.steps[rows] if rows < len(self.steps) else self.last_step + 1
        torn = None
        if rows and self.stride > 1 and upto > step:
            rows -= 1
            torn = self.row(rows)
        del self.steps[rows:], self.offsets[rows:], self.times[rows:]
        for curves in self._curves.values():
            for curve in curves:
                curve.truncate(rows)
        self._in_row = self.stride  # the next step opens a row of its own
        self.last_step = (torn.step if torn else step) - 1
        self.restarts = [at for at in self.restarts if at < step] + [step]
        return torn

    def close_row(self) -> None:
        """Start a new row at the next step: it is elsewhere in the file."""
        self.commit()
        self._in_row = self.stride

    def halved(self) -> "History":
        """A copy with half of the rows; this one stays as it is, so readers never wait."""
        other = History({}, self.capacity, self.stride * 2)
        other._curves = {
            name: [curve.paired() for curve in curves] for name, curves in self._curves.items()
        }
        other.steps, other.offsets = self.steps[::2], self.offsets[::2]
        other.times = self.times[::2]
        other.last_step, other.restarts = self.last_step, self.restarts
        return other

    def index_of(self, step: int) -> int:
        """Index of the row with ``step``, or of the last one before it; at least 0."""
        return max(0, bisect_right(self.steps, step) - 1)

    def row(self, at: int) -> Row:
        """Location of row ``at``."""
        after, end = self.last_step + 1, None
        if at + 1 < len(self.steps):
            after, end = self.steps[at + 1], self.offsets[at + 1]
        first = self.steps[at]
        restart = min((step for step in self.restarts if first < step <= after), default=None)
        return Row(first, self.offsets[at], self.times[at], after, end, restart)

    def time_of(self, step: int) -> float | None:
        """Time of the row with ``step``, Unix seconds; ``None`` if not logged."""
        time = self.times[self.index_of(step)] if self.times else NAN
        return time if time == time else None

    def columns(
        self,
        name: str,
        index: int,
        count: int,
        *,
        since: int | None = None,
        until: int | None = None,
    ) -> list[Column]:
        """The series in at most ``count`` columns of equal numbers of rows.

        Args:
            name: the series; ``index`` the router in it.
            since, until: first and last step shown; the whole history by default.
        """
        return self._curves[name][index].columns(self._cuts(count, self.rows(since, until)))

    def axis(self, count: int, *, since: int | None = None, until: int | None = None) -> list[int]:
        """The first step of every column that ``columns`` gives."""
        return [self.steps[cut] for cut in self._cuts(count, self.rows(since, until))[:-1]]

    def rows(self, since: int | None = None, until: int | None = None) -> range:
        """The rows with steps from ``since`` to ``until``."""
        first = 0 if since is None or since <= 1 else self.index_of(since)
        last = len(self.steps) if until is None else bisect_left(self.steps, until + 1)
        return range(min(first, last), last)

    @staticmethod
    def _cuts(count: int, rows: range) -> list[int]:
        count = min(count, len(rows))
        cuts = [rows.start + len(rows) * i // count for i in range(count + 1)] if count else [0]
        if len(rows) >= 2 * COARSE * count:  # cut between coarse rows: the difference is invisible
            cuts[1:-1] = [cut // COARSE * COARSE for cut in cuts[1:-1]]
        return cuts

    def value(self, name: str, index: int, row: int = -1) -> float:
        """The mean of one row, the last by default; NaN while there is none."""
        return self._curves[name][index].fine.mean[row] if self.steps else NAN

    def _coarse_rows(self) -> int:
        for curves in self._curves.values():
            for curve in curves:
                return len(curve.coarse)
        return 0


class Window(NamedTuple):
    """A range of steps, both ends included."""

    first: int
    last: int


class Curves:
    """The history in a number of columns over a window."""

    def __init__(self, history: History | None, columns: int, window: Window) -> None:
        self._history, self._columns, self._window = history, columns, window
        self.restarts: Sequence[int] = history.restarts if history else ()

    def of(self, name: str, index: int = 0) -> Sequence[Column]:
        """One series."""
        if self._history is None:
            return ()
        first, last = self._window
        return self._history.columns(name, index, self._columns, since=first, until=last)

    def axis(self) -> Sequence[int]:
        """The first step of every column."""
        if self._history is None:
            return ()
        first, last = self._window
        return self._history.axis(self._columns, since=first, until=last)

    def times(self, steps: Sequence[int]) -> Sequence[float | None]:
        """When these steps were written."""
        return [self._history.time_of(step) for step in steps] if self._history else ()

    def share_of(self, step: int) -> float | None:
        """Position of a step in the columns, 0 … 1."""
        if self._history is None:
            return None
        rows = self._history.rows(*self._window)
        before = self._history.index_of(step) + 1 - rows.start
        return max(0.0, min(1.0, before / len(rows))) if rows else None
