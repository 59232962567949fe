"""One curve over the whole history, as low / mean / high per row of steps, with a coarse copy.

A row keeps the lowest and the highest value of its steps, so a spike survives any number of
mergings. Every 16 rows have one coarse row: a chart of a hundred columns never walks over
thousands of rows.
"""

import itertools
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

NAN = math.nan
COARSE = 16
"""Rows of the fine level that one coarse row covers."""
BYTES_PER_ROW = 3 * 4 * (1 + 1 / COARSE)


@dataclass(frozen=True, slots=True)
class Column:
    """What one column of a chart covers; NaN where nothing was measured."""

    low: float
    mean: float
    high: float


EMPTY = Column(NAN, NAN, NAN)

Cells: TypeAlias = "array[float]"


class Level:
    """Rows of one resolution."""

    __slots__ = ("high", "low", "mean")

    def __init__(self, low: Cells, mean: Cells, high: Cells) -> None:
        self.low, self.mean, self.high = low, mean, high

    def __len__(self) -> int:
        return len(self.low)

    def append(self, column: Column) -> None:
        """Add one row."""
        self.low.append(column.low)
        self.mean.append(column.mean)
        self.high.append(column.high)

    def truncate(self, rows: int) -> None:
        """Keep the first ``rows`` rows."""
        del self.low[rows:], self.mean[rows:], self.high[rows:]

    def cut(self, first: int, last: int) -> "Level":
        """Rows ``first`` to ``last`` (exclusive)."""
        return Level(self.low[first:last], self.mean[first:last], self.high[first:last])

    def joined(self, other: "Level") -> "Level":
        """These rows and then those of ``other``."""
        return Level(self.low + other.low, self.mean + other.mean, self.high + other.high)

    def column(self) -> Column:
        """All rows in one; gaps are left out."""
        if not self.low:
            return EMPTY
        total = sum(self.mean)
        if math.isfinite(total):
            return Column(min(self.low), total / len(self.mean), max(self.high))
        measured = [i for i, value in enumerate(self.low) if value == value]
        if not measured:
            return EMPTY
        low, high = (min(self.low[i] for i in measured), max(self.high[i] for i in measured))
        return Column(low, sum(self.mean[i] for i in measured) / len(measured), high)

    def paired(self) -> "Level":
        """Rows 0 and 1, 2 and 3 … in one each; an odd last row stays by itself."""
        rest = self.cut(len(self) & ~1, len(self))
        first, second = slice(0, len(self) & ~1, 2), slice(1, len(self) & ~1, 2)
        if math.isfinite(sum(self.mean)):  # no gap anywhere: at C speed
            low = array("f", map(min, self.low[first], self.low[second]))
            high = array("f", map(max, self.high[first], self.high[second]))
        else:
            low = array("f", map(_lower, self.low[first], self.low[second]))
            high = array("f", map(_higher, self.high[first], self.high[second]))
        mean = array("f", map(_middle, self.mean[first], self.mean[second]))
        return Level(low, mean, high).joined(rest)


def empty_level() -> Level:
    """A level without rows."""
    return Level(array("f"), array("f"), array("f"))


class Series:
    """One series of one router."""

    __slots__ = ("coarse", "fine")

    def __init__(self, fine: Level | None = None, coarse: Level | None = None) -> None:
        self.fine = fine or empty_level()
        self.coarse = coarse or empty_level()

    def fold(self, values: Sequence[float | None], before: int) -> None:
        """Merge ``values`` into the last row, which holds ``before`` steps already."""
        new, last = _summary(values), self.fine
        if new.low != new.low:
            return
        low = last.low[-1]
        if low != low:
            last.truncate(len(last) - 1)
            last.append(new)
            return
        last.low[-1] = min(low, new.low)
        last.high[-1] = max(last.high[-1], new.high)
        last.mean[-1] += (new.mean - last.mean[-1]) * len(values) / (before + len(values))

    def extend(self, values: Sequence[float | None], stride: int) -> None:
        """Add a row for every ``stride`` values; the last row may cover fewer."""
        if stride == 1:
            row = array("f", _with_nan(values))
            for cells in (self.fine.low, self.fine.mean, self.fine.high):
                cells.extend(row)
            return
        for start in range(0, len(values), stride):
            self.fine.append(_summary(values[start : start + stride]))

    def keep_coarse(self, complete: int) -> None:
        """Bring the coarse rows up to the ``complete`` rows that change no more."""
        for start in range(len(self.coarse) * COARSE, complete - COARSE + 1, COARSE):
            self.coarse.append(self.fine.cut(start, start + COARSE).column())

    def truncate(self, rows: int) -> None:
        """Keep the first ``rows`` rows."""
        self.fine.truncate(rows)
        self.coarse.truncate(rows // COARSE)

    def paired(self) -> "Series":
        """The same curve at half the resolution."""
        fine, coarse = self.fine.paired(), self.coarse.paired()
        coarse.truncate(len(self.coarse) // 2)  # an odd last one covers half of its new rows
        return Series(fine, coarse)

    def columns(self, cuts: Sequence[int]) -> list[Column]:
        """One column between each two neighbours of ``cuts`` (increasing row numbers)."""
        return [self._column(a, b) for a, b in itertools.pairwise(cuts)]

    def _column(self, first: int, last: int) -> Column:
        """Fine rows ``first`` to ``last``, through the coarse ones where they fit."""
        a, b = -(-first // COARSE), min(last // COARSE, len(self.coarse))
        if b <= a:
            return self.fine.cut(first, last).column()
        middle = self.coarse.cut(a, b).column()
        if a * COARSE == first and b * COARSE == last:
            return middle
        edges = self.fine.cut(first, a * COARSE).joined(self.fine.cut(b * COARSE, last))
        # A coarse row weighs 16 times a fine one in the mean.
        return _mixed(middle, edges.column(), len(edges) / (last - first))


def _mixed(one: Column, other: Column, share: float) -> Column:
    """Two columns in one, the second with this share of the mean."""
    if other.low != other.low:
        return one
    if one.low != one.low:
        return other
    mean = one.mean + share * (other.mean - one.mean)
    return Column(min(one.low, other.low), mean, max(one.high, other.high))


def _with_nan(values: Sequence[float | None]) -> Sequence[float]:
    if None in values:
        return [NAN if value is None else value for value in values]
    return cast(Sequence[float], values)


def _summary(values: Sequence[float | None]) -> Column:
    if None not in values:
        known = cast(Sequence[float], values)
        mean = sum(known) / len(known)
        if math.isfinite(mean):
            return Column(min(known), mean, max(known))
    measured = [value for value in values if value is not None and value == value]
    if not measured:
        return EMPTY
    return Column(min(measured), sum(measured) / len(measured), max(measured))


def _lower(a: float, b: float) -> float:
    return b if a != a or b < a else a


def _higher(a: float, b: float) -> float:
    return b if a != a or b > a else a


def _middle(a: float, b: float) -> float:
    if a != a or b != b:
        return b if a != a else a
    return (a + b) / 2
