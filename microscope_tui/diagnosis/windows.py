"""Windows over past steps that can be saved: structs of lists."""

import math
from bisect import bisect_left
from collections.abc import Sequence

import msgspec

NAN = math.nan


class SummedCounts(msgspec.Struct):
    """Counts of one router summed over the last ``window`` steps with counts."""

    window: int
    rows: list[list[int]] = []
    totals: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: Sequence[int]) -> None:
        """Add the counts of one step; a full window drops the oldest."""
        if len(row) != len(self.totals):
            self.rows, self.totals = [], [0] * len(row)
        if len(self.rows) >= self.window:
            oldest = self.rows.pop(0)
            self.totals = [t - o + n for t, o, n in zip(self.totals, oldest, row, strict=True)]
        else:
            self.totals = [t + n for t, n in zip(self.totals, row, strict=True)]
        self.rows.append(list(row))


class Trail(msgspec.Struct):
    """Every ``every``-th value of all routers, the last ``size`` of them."""

    every: int
    size: int
    steps: list[int] = []
    rows: list[list[float]] = []
    seen: int = 0

    def add(self, step: int, values: Sequence[float]) -> bool:
        """Add one step; true if it was kept."""
        self.seen += 1
        if (self.seen - 1) % self.every:
            return False
        self.steps.append(step)
        self.rows.append(list(values))
        if len(self.rows) > self.size:
            del self.steps[0], self.rows[0]
        return True

    def forget_from(self, step: int) -> None:
        """The run resumes at ``step``."""
        while self.steps and self.steps[-1] >= step:
            del self.steps[-1], self.rows[-1]

    def column(self, router: int, first: int = 0, last: int | None = None) -> list[float]:
        """The kept finite values of one router, oldest first."""
        return [v for row in self.rows[first:last] if (v := row[router]) == v]

    def before(self, step: int, router: int) -> list[float]:
        """The kept values of one router from before ``step``, oldest first."""
        return self.column(router, 0, bisect_left(self.steps, step))


class FirstValues(msgspec.Struct):
    """Values of all routers in the first ``size`` lines of a run: its initial state.

    A resume keeps them, or damage would become the new reference.
    """

    size: int
    steps: list[int] = []
    rows: list[list[float]] = []

    def add(self, step: int, values: Sequence[float]) -> None:
        """Add one line while there is room."""
        if len(self.rows) < self.size:
            self.steps.append(step)
            self.rows.append(list(values))

    def forget_from(self, step: int) -> None:
        """The run continues from ``step`` again."""
        kept = sum(at < step for at in self.steps)
        del self.steps[kept:], self.rows[kept:]

    def usual(self, router: int, lines: int) -> float:
        """The median of one router in the first ``lines``; NaN before the first value."""
        return median([v for row in self.rows[:lines] if (v := row[router]) == v])


def window_steps(expected: float, evidence: float, least: int, most: int) -> int:
    """Number of steps that give an expert ``evidence`` expected assignments, within two bounds."""
    needed = math.ceil(evidence / expected) if expected > 0 else most
    return min(most, max(least, needed))


def median(values: Sequence[float]) -> float:
    """The median, the upper one of two; NaN without values."""
    return sorted(values)[len(values) // 2] if values else NAN
