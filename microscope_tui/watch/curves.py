"""The history of a run over a window of steps, in as many columns as a screen has."""

from collections.abc import Sequence
from typing import NamedTuple

from microscope_tui.watch.curve import Column
from microscope_tui.watch.history import History


class Window(NamedTuple):
    """A stretch of steps, both ends included."""

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
        """Where a step stands in the columns, 0 … 1."""
        if self._history is None:
            return None
        rows = self._history.rows(*self._window)
        before = self._history.index_of(step) + 1 - rows.start
        return max(0.0, min(1.0, before / len(rows))) if rows else None
