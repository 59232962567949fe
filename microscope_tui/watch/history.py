"""The whole history of a run in bounded memory, as low / mean / high per stretch of steps.

Up to ``capacity`` rows every step keeps a row of its own. When they are full, neighbours merge in
pairs and every row covers twice as many steps from then on. A merged row keeps the lowest and the
highest value of its steps, so a spike survives any number of mergings.
"""

import itertools
import math
from array import array
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

NAN = math.nan


@dataclass(frozen=True, slots=True)
class Column:
    """What one column of a chart covers; NaN where nothing was measured."""

    low: float
    mean: float
    high: float


EMPTY = Column(NAN, NAN, NAN)


class Band:
    """One series: low, mean and high, ``width`` values a row (one per router)."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.low, self.mean, self.high = array("f"), array("f"), array("f")

    def append(self, values: Sequence[float]) -> None:
        """Add a row of its own."""
        row = array("f", values)
        self.low += row
        self.mean += row
        self.high += row

    def fold(self, values: Sequence[float], weight: float) -> None:
        """Merge ``values`` into the last row; ``weight`` is their share of its mean."""
        start = len(self.low) - self.width
        for offset, value in enumerate(values):
            if value != value:
                continue
            at = start + offset
            low = self.low[at]
            if low != low:
                self.low[at] = self.mean[at] = self.high[at] = value
                continue
            self.low[at] = min(low, value)
            self.high[at] = max(self.high[at], value)
            self.mean[at] += weight * (value - self.mean[at])

    def merge_pairs(self, rows: int) -> None:
        """Merge rows 0 and 1, 2 and 3 … into one each; ``rows`` is even."""
        size = rows * self.width
        self.low = _merged(self.low, self.width, size, _lower)
        self.mean = _merged(self.mean, self.width, size, _middle)
        self.high = _merged(self.high, self.width, size, _higher)

    def truncate(self, rows: int) -> None:
        """Keep the first ``rows`` rows."""
        for values in (self.low, self.mean, self.high):
            del values[rows * self.width :]

    def column(self, index: int, first: int, last: int) -> Column:
        """Rows ``first`` to ``last`` (exclusive) of router ``index`` in one column."""
        cells = slice(first * self.width + index, last * self.width, self.width)
        low, mean, high = self.low[cells], self.mean[cells], self.high[cells]
        total = sum(mean)
        if not math.isfinite(total):  # a gap somewhere: leave it out
            measured = [i for i, value in enumerate(low) if value == value]
            if not measured:
                return EMPTY
            low, mean, high = (array("f", [v[i] for i in measured]) for v in (low, mean, high))
            total = sum(mean)
        return Column(min(low), total / len(mean), max(high))


class History:
    """Named series over one axis of steps."""

    def __init__(self, widths: Mapping[str, int], capacity: int = 4096) -> None:
        """``widths``: values per step of each series; ``capacity``: rows kept (even)."""
        self.steps = array("q")
        """First step of each row."""
        self.last_step = 0
        self.restarts: list[int] = []
        self._bands = {name: Band(width) for name, width in widths.items()}
        self._capacity = capacity
        self._stride = 1
        self._in_last = 0

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, step: int, values: Mapping[str, Sequence[float]]) -> None:
        """Take in one step; a step at or before an earlier one replaces that future."""
        if self.steps and step <= self.last_step:
            self.restart(step)
        if self._in_last and self._in_last < self._stride:
            self._in_last += 1
            for name, band in self._bands.items():
                band.fold(values[name], 1.0 / self._in_last)
        else:
            if len(self.steps) >= self._capacity:
                self._halve()
            self.steps.append(step)
            self._in_last = 1
            for name, band in self._bands.items():
                band.append(values[name])
        self.last_step = step

    def restart(self, step: int) -> None:
        """Drop everything from ``step`` on and remember that the run restarted there."""
        rows = bisect_left(self.steps, step)
        del self.steps[rows:]
        for band in self._bands.values():
            band.truncate(rows)
        self._in_last = self._stride  # the next step opens a row of its own
        self.last_step = step - 1
        self.restarts = [at for at in self.restarts if at < step] + [step]

    def columns(
        self, name: str, index: int, count: int, *, until: int | None = None
    ) -> list[Column]:
        """The series in at most ``count`` columns of equal numbers of rows.

        Args:
            name: the series; ``index`` the router in it.
            until: last step shown; the whole history by default.
        """
        rows = len(self.steps) if until is None else bisect_left(self.steps, until + 1)
        count = min(count, rows)
        band = self._bands[name]
        cuts = [rows * i // count for i in range(count + 1)] if count else [0]
        return [band.column(index, a, b) for a, b in itertools.pairwise(cuts)]

    def value(self, name: str, index: int, row: int = -1) -> float:
        """The mean of one row, the last by default; NaN while there is none."""
        band = self._bands[name]
        if not self.steps:
            return NAN
        return band.mean[(row % len(self.steps)) * band.width + index]

    def _halve(self) -> None:
        rows = len(self.steps)  # the capacity, which is even
        self.steps = self.steps[::2]
        for band in self._bands.values():
            band.merge_pairs(rows)
        self._stride *= 2
        self._in_last = self._stride


def _merged(
    values: "array[float]", width: int, size: int, merge: Callable[[float, float], float]
) -> "array[float]":
    out = array("f")
    if width == 0:  # a model without routers
        return out
    for start in range(0, size, 2 * width):
        middle = start + width
        out.extend(map(merge, values[start:middle], values[middle : middle + width]))
    return out


def _lower(a: float, b: float) -> float:
    return b if a != a or b < a else a


def _higher(a: float, b: float) -> float:
    return b if a != a or b > a else a


def _middle(a: float, b: float) -> float:
    if a != a or b != b:
        return b if a != a else a
    return (a + b) / 2
