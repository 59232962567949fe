"""The whole history of a run in bounded memory: a pyramid of low / mean / high over its steps.

A row covers ``stride`` steps and keeps the lowest and the highest value of them, so a spike
survives any number of mergings. When the rows reach their capacity, neighbours merge in pairs
(``halved``) and every row covers twice as many steps. A new row begins at a restart, and each knows
where in the file its first record is. Every 16 rows have one coarse row, made when a chart first
asks for the curve: a chart of a hundred columns walks over thousands of rows once.
"""

import itertools
import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias, cast

import msgspec

NAN = math.nan
COARSE = 16
BYTES_PER_ROW = 3 * 4 * (1 + 1 / COARSE)


class Column(msgspec.Struct, frozen=True):
    """What one column of a chart covers; all three are NaN where nothing was measured."""

    low: float
    """The lowest value of any step."""
    mean: float
    high: float
    """The highest value of any step."""


Cells: TypeAlias = "array[float]"
_Merge: TypeAlias = Callable[[tuple[float, ...]], float]


class Level:
    """Rows of one resolution; where each covers one step, the three arrays are one."""

    __slots__ = ("high", "low", "mean")

    def __init__(self, low: Cells, mean: Cells, high: Cells) -> None:
        self.low, self.mean, self.high = low, mean, high

    def __len__(self) -> int:
        return len(self.low)

    def truncate(self, rows: int) -> None:
        """Keep the first ``rows``."""
        del self.low[rows:], self.mean[rows:], self.high[rows:]

    def extend(self, rows: "Level") -> None:
        self.low.extend(array("f", rows.low))
        if self.mean is not self.low:
            self.mean.extend(rows.mean)
            self.high.extend(rows.high)

    def cut(self, first: int, last: int) -> "Level":
        """A copy of the rows from ``first`` up to, but without, ``last``."""
        low = self.low[first:last]
        if self.mean is self.low:
            return Level(low, low, low)
        return Level(low, self.mean[first:last], self.high[first:last])

    def joined(self, other: "Level") -> "Level":
        """A new level, with the rows of ``other`` behind these."""
        return Level(self.low + other.low, self.mean + other.mean, self.high + other.high)

    def column(self) -> Column:
        """All rows in one; gaps are left out."""
        low, mean, high = self.low, self.mean, self.high
        total = sum(mean)
        if low and math.isfinite(total):
            return Column(min(low), total / len(mean), max(high))
        measured = [row for row in zip(low, mean, high, strict=True) if row[0] == row[0]]
        if not measured:
            return Column(NAN, NAN, NAN)
        lows, means, highs = zip(*measured, strict=True)
        return Column(min(lows), sum(means) / len(measured), max(highs))

    def grouped(self, size: int) -> "Level":
        """Every ``size`` rows in one, the rest in one more."""
        sound = math.isfinite(sum(self.mean))  # no gap anywhere
        if not sound and not any(value == value for value in self.low):
            return _level(*[[NAN] * -(-len(self) // size)] * 3)
        whole = 0
        merges: tuple[_Merge, _Merge, _Merge] = (min, lambda rows: sum(rows) / size, max)
        if sound:
            whole = len(self) // size * size
        elif size == 2:  # the most frequent groups: a column for each would take long
            whole = len(self) // 2 * 2
            merges = _lowest, _mean, _highest
        lows, means, highs = (
            list(map(merge, zip(*[iter(cells[:whole])] * size, strict=True)))
            for merge, cells in zip(merges, (self.low, self.mean, self.high), strict=True)
        )
        for at in range(whole, len(self), size):
            rest = self.cut(at, at + size).column()
            lows.append(rest.low)
            means.append(rest.mean)
            highs.append(rest.high)
        return _level(lows, means, highs)


def _lowest(pair: tuple[float, ...]) -> float:
    """Of two values, either of which may be NaN, a gap; so do the next two functions."""
    a, b = pair
    if a != a or b < a:
        return b
    return a


def _mean(pair: tuple[float, ...]) -> float:
    a, b = pair
    if a != a:
        return b
    if b != b:
        return a
    return (a + b) / 2


def _highest(pair: tuple[float, ...]) -> float:
    a, b = pair
    if a != a or b > a:
        return b
    return a


def or_gap(value: float | None) -> float:
    """NaN, a gap in a curve, for ``None``."""
    if value is None:
        return NAN
    return value


def _level(low: Iterable[float], mean: Iterable[float], high: Iterable[float]) -> Level:
    return Level(array("f", low), array("f", mean), array("f", high))


def _steps(values: Sequence[float | None]) -> Level:
    """A row for every value, in double precision until rows are made of them."""
    known = values
    if None in values:
        known = list(map(or_gap, values))
    return Level(*[cast(Cells, known)] * 3)


class Series:
    """One curve: its rows, and coarse rows of 16 of them each."""

    __slots__ = ("coarse", "fine")

    def __init__(self, stride: int) -> None:
        self.fine = _level((), (), ())
        self.coarse = _level((), (), ())
        if stride == 1:
            self.fine = Level(*[array("f")] * 3)

    def fold(self, values: Sequence[float | None], before: int) -> None:
        """Merge ``values`` into the last row, of ``before`` steps."""
        rows = self.fine
        more = len(values)
        last = Column(rows.low[-1], rows.mean[-1], rows.high[-1])
        merged = _mixed(last, _steps(values).column(), more / (before + more))
        rows.low[-1] = merged.low
        rows.mean[-1] = merged.mean
        rows.high[-1] = merged.high

    def extend(self, values: Sequence[float | None], stride: int) -> None:
        """Add a row for every ``stride`` values, and for the rest."""
        steps = _steps(values)
        if stride > 1:
            steps = steps.grouped(stride)
        self.fine.extend(steps)

    def keep_coarse(self, complete: int) -> None:
        """Bring the coarse rows up to the ``complete`` rows that change no more."""
        before = self.coarse
        done = len(before) * COARSE
        complete = complete // COARSE * COARSE
        if complete > done:
            more = self.fine.cut(done, complete).grouped(COARSE)
            self.coarse = before.joined(more)  # a new one: ``halved`` may be doing the same

    def truncate(self, rows: int) -> None:
        """Keep the first ``rows``, and the coarse rows that they fill."""
        self.fine.truncate(rows)
        self.coarse.truncate(rows // COARSE)

    def paired(self, complete: int) -> "Series":
        """A copy with half of the rows; the first ``complete`` rows change no more."""
        self.keep_coarse(complete)
        made = Series(2)
        made.fine = self.fine.grouped(2)
        made.coarse = self.coarse.grouped(2)
        made.coarse.truncate(len(self.coarse) // 2)  # an odd last one covers half of its new rows
        return made

    def column(self, first: int, last: int) -> Column:
        """One column of the fine rows from ``first`` up to, but without, ``last``.

        It goes through the coarse rows where they fit.
        """
        a = -(-first // COARSE)
        b = min(last // COARSE, len(self.coarse))
        if b <= a:
            return self.fine.cut(first, last).column()
        middle = self.coarse.cut(a, b).column()
        if a * COARSE == first and b * COARSE == last:
            return middle
        edges = self.fine.cut(first, a * COARSE).joined(self.fine.cut(b * COARSE, last))
        # A coarse row weighs 16 times a fine one in the mean.
        return _mixed(middle, edges.column(), len(edges) / (last - first))


def _mixed(one: Column, other: Column, share: float) -> Column:
    if other.low != other.low:
        return one
    if one.low != one.low:
        return other
    mean = one.mean + share * (other.mean - one.mean)
    return Column(min(one.low, other.low), mean, max(one.high, other.high))


MOST_LATER = 64
"""Series that may begin later than the history: full, they take 6.7 MB."""
MAX_ROWS = 8192
MIN_ROWS = 256
_NEVER = 2**63
_BATCH = 64  # steps that are taken in together: one pass over 64 values costs little more than one

Values = Sequence[float | None]


class Row(msgspec.Struct, frozen=True):
    """One row of the history, and where its steps are in the file."""

    step: int
    """Its first step."""
    offset: int
    """Of the record of that step, in bytes."""
    time: float = NAN
    """Of that step, Unix seconds; NaN where it has none."""
    after: int = _NEVER
    """The first step behind it."""
    end: int | None = None
    """Offset of the next row; ``None`` for the last one."""
    restart: int | None = None
    """The first restart within it, if any: later steps in the file may be superseded."""


def rows_within(memory_bytes: int, curves: int) -> int:
    """How many rows of so many curves fit in ``memory_bytes``, within bounds."""
    rows = int(memory_bytes / (BYTES_PER_ROW * max(1, curves) + 24))
    return max(MIN_ROWS, min(MAX_ROWS, rows)) // (2 * COARSE) * (2 * COARSE)


class History:
    """Named series over one axis of steps.

    ``add`` is invisible until ``commit``, which is called under the lock of the readers.
    """

    def __init__(
        self, widths: Mapping[str, int], capacity: int = MAX_ROWS, stride: int = 1
    ) -> None:
        """``widths``: values per step of each series; ``stride``: steps a row, to begin with."""
        self.steps = array("q")
        self.offsets = array("q")
        """Of the first record of each row."""
        self.times = array("d")
        """The same; Unix seconds, NaN where it has none."""
        self.last_step = 0
        self.restarts: list[int] = []
        self.capacity = capacity
        self.stride = stride
        self._curves = {name: [Series(stride) for _ in range(n)] for name, n in widths.items()}
        self.later: list[str] = []
        """Series that began later, of one value a step."""
        self._pending: list[Mapping[str, Values]] = []
        self._opened: list[Row] = []  # rows that begin in what is pending …
        self._older = 0  # … after this many steps that still belong to the last visible row
        self._in_row = stride  # steps in the last row, pending ones included
        self._committed_in_row = 0

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def full(self) -> bool:
        """Whether it is time for ``halved``; until then it grows beyond its capacity."""
        return len(self.steps) >= self.capacity

    def add(
        self, step: int, values: Mapping[str, Values], offset: int = 0, time: float | None = None
    ) -> None:
        """Add one step; ``values`` by the name of the series, one value per curve.

        Names that are not in ``widths`` begin a series here, with one value a step. ``offset``: of
        the record in the file; ``time``: Unix seconds. ``ValueError``: ``step`` is not after the
        last one; call ``restart`` first.
        """
        if step <= self.last_step and (self.steps or self._pending):
            raise ValueError(f"step {step} after step {self.last_step}: restart the history first")
        if self._in_row >= self.stride:
            if not self._opened:
                self._older = len(self._pending)
            self._opened.append(Row(step, offset, or_gap(time)))
            self._in_row = 0
        self._in_row += 1
        self._pending.append(values)
        self.last_step = step
        if len(self._pending) >= _BATCH:
            self.commit()

    def commit(self) -> bool:
        """Make the added steps visible; true if there were any."""
        if not self._pending:
            return False
        older = len(self._pending)
        if self._opened:
            older = self._older
        for values in self._pending:
            for name in [name for name in values if name not in self._curves]:
                if len(self.later) < MOST_LATER:
                    self.later.append(name)
                    self._curves[name] = [Series(self.stride)]
                    gap = array("f", [NAN]) * len(self.steps)
                    self._curves[name][0].fine.extend(Level(gap, gap, gap))
        for name, curves in self._curves.items():
            gaps = (None,) * len(curves)
            columns = zip(*(values.get(name, gaps) for values in self._pending), strict=True)
            for curve, column in zip(curves, columns, strict=True):
                if older:
                    curve.fold(column[:older], self._committed_in_row)
                if older < len(column):
                    curve.extend(column[older:], self.stride)
        self._committed_in_row = self._in_row
        self.steps.extend(row.step for row in self._opened)
        self.offsets.extend(row.offset for row in self._opened)
        self.times.extend(row.time for row in self._opened)
        self._pending = []
        self._opened = []
        return True

    def restart(self, step: int) -> Row | None:
        """Drop everything from ``step`` on: the run restarted there.

        Returns the row that covered steps on both sides, if any: it is dropped whole, and its steps
        before ``step`` are to be read again from the file and added.
        """
        self.commit()
        rows = bisect_left(self.steps, step)
        upto = self.last_step + 1
        if rows < len(self.steps):
            upto = self.steps[rows]
        torn = None
        if rows and self.stride > 1 and upto > step:
            rows -= 1
            torn = self.row(rows)
        del self.steps[rows:], self.offsets[rows:], self.times[rows:]
        for curves in self._curves.values():
            for curve in curves:
                curve.truncate(rows)
        self._in_row = self.stride  # the next step opens a row of its own
        self.last_step = step - 1
        if torn is not None:
            self.last_step = torn.step - 1
        self.restarts = [at for at in self.restarts if at < step] + [step]
        return torn

    def close_row(self) -> None:
        """Start a new row at the next step: it is elsewhere in the file."""
        self.commit()
        self._in_row = self.stride

    def halved(self) -> "History":
        """A copy with half of the rows: readers never wait."""
        other = History({}, self.capacity, self.stride * 2)
        other._curves = {
            name: [curve.paired(self._complete) for curve in curves]
            for name, curves in self._curves.items()
        }
        other.steps = self.steps[::2]
        other.offsets = self.offsets[::2]
        other.times = self.times[::2]
        other.last_step = self.last_step
        other.restarts = self.restarts
        other.later = self.later
        return other

    def index_of(self, step: int) -> int:
        """The row with ``step``, or the last one before it; at least 0."""
        return max(0, bisect_right(self.steps, step) - 1)

    def row(self, at: int) -> Row:
        """The row at index ``at``, and where its steps are in the file."""
        first = self.steps[at]
        after = self.last_step + 1
        end = None
        if at + 1 < len(self.steps):
            after = self.steps[at + 1]
            end = self.offsets[at + 1]
        restart = min((step for step in self.restarts if first < step <= after), default=None)
        return Row(first, self.offsets[at], self.times[at], after, end, restart)

    def time_of(self, step: int) -> float | None:
        """Time of the row with ``step``, Unix seconds; ``None`` if not logged."""
        if not self.times:
            return None
        time = self.times[self.index_of(step)]
        if time != time:
            return None
        return time

    def columns(
        self, name: str, index: int, count: int, window: "Window | None" = None
    ) -> list[Column]:
        """The series in at most ``count`` columns of equal numbers of rows.

        ``name``: of the series; ``index``: the router in it, 0 for a number of the run; ``window``:
        by default the whole history.
        """
        cuts = self._cuts(count, self.rows(window))
        if len(cuts) == 1:
            return []  # no rows; before a header not even a series
        curve = self._curves[name][index]
        curve.keep_coarse(self._complete)
        return [curve.column(first, last) for first, last in itertools.pairwise(cuts)]

    def axis(self, count: int, window: "Window | None" = None) -> list[int]:
        """First step of each column that ``columns`` gives for the same ``count`` and
        ``window``.
        """
        return [self.steps[cut] for cut in self._cuts(count, self.rows(window))[:-1]]

    def rows(self, window: "Window | None" = None) -> range:
        """Indices of the rows that have steps of ``window``; by default all."""
        if window is None:
            return range(len(self.steps))
        first = 0  # with a step 0
        if window.first > 1:
            first = self.index_of(window.first)
        last = bisect_left(self.steps, window.last + 1)
        return range(min(first, last), last)

    @staticmethod
    def _cuts(count: int, rows: range) -> list[int]:
        count = min(count, len(rows))
        cuts = [rows.start + len(rows) * i // max(1, count) for i in range(count + 1)]
        if len(rows) >= 2 * COARSE * count:  # cut between coarse rows: the difference is invisible
            cuts[1:-1] = [cut // COARSE * COARSE for cut in cuts[1:-1]]
        return cuts

    def value(self, name: str, index: int, row: int = -1) -> float:
        """The mean of one row; NaN: there is none."""
        if not self.steps:
            return NAN
        return self._curves[name][index].fine.mean[row]

    @property
    def _complete(self) -> int:
        return len(self.steps) - (self._committed_in_row < self.stride)


class Window(NamedTuple):
    """A range of steps, both ends included."""

    first: int
    last: int

    def has(self, step: int) -> bool:
        return self.first <= step <= self.last


class Curves:
    """The series of a history in columns that all curves of a view share. The caller has the lock.

    All methods return empty results before a header was read.
    """

    def __init__(self, history: History, columns: int, window: Window) -> None:
        self.window = window
        self._history = history
        self._columns = columns

    def of(self, name: str, index: int = 0) -> Sequence[Column]:
        """At most as many columns as requested; ``index``: the router."""
        return self._history.columns(name, index, self._columns, self.window)

    def axis(self) -> Sequence[int]:
        """First step of each column."""
        return self._history.axis(self._columns, self.window)

    def times(self, steps: Sequence[int]) -> Sequence[float | None]:
        """Of each of ``steps``, Unix seconds; ``None`` where it was not logged."""
        return list(map(self._history.time_of, steps))

    def restarts(self) -> Sequence[int]:
        """Steps in the window from which the run was resumed."""
        if not len(self._history):
            return ()  # the first step behind a restart has not come
        return tuple(filter(self.window.has, self._history.restarts))

    def share_of(self, step: int) -> float | None:
        """The place of ``step`` among the columns, 0 … 1; ``None`` where the window has no rows."""
        rows = self._history.rows(self.window)
        if not rows:
            return None
        before = self._history.index_of(step) + 1 - rows.start
        return max(0.0, min(1.0, before / len(rows)))
