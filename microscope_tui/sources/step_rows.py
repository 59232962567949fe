"""The rows of the step that a source is writing.

Loggers write several rows per step: they are merged, and of two readings the later one counts.
Nothing marks the end of a step. It is complete when a row of another step follows, or when nothing
was written for a while. If more of it comes after that, the step is complete a second time, and
this logger is waited for longer from then on.
"""

import time
from collections.abc import Iterator, Sequence

from microscope_tui.sources.reader import Row

COMPLETE_AFTER_S = 0.4
"""The last step counts as complete if nothing was written for this long."""
MOST_PATIENCE_S = 60.0
"""Longest wait for the rest of a step, after one came late."""
_MOST_PARTS = 64  # rows of one step, before they are merged
_LATE_STEPS = 16
"""A row that is so far behind at most, and has no reading of a router, does not resume the run."""


Step = tuple[Row, bool]
"""A complete step, and whether it was complete before without its rest."""


class StepRows:
    """Joins the rows of one step: a logger may write a step in several parts.

    A step is complete when a row of another one comes, or when nothing came for a while.
    """

    def __init__(self) -> None:
        self._parts: list[Row] = []  # of the open step
        self._grew = time.monotonic()
        self._early: Row | None = None  # the last step, complete because nothing more came
        self._is_again = False  # the open step is that one
        self._patience_s = 0.0  # a logger that writes a step in parts will do so again

    def wait_s(self) -> float:
        """Seconds until the open step may be complete; 0 if none is open."""
        if not self._parts:
            return 0.0
        return COMPLETE_AFTER_S / 10

    def complete(self, rows: Sequence[Row], *, is_started: bool) -> Iterator[Step]:
        """The steps that these rows complete; ``is_started``: some were written to the log."""
        for row in rows:
            if 0 < self._newest - row.step <= _LATE_STEPS and not row.of_router:
                continue  # a delayed loss; with readings of routers it is a run that resumed
            if not self._parts or row.step != self._parts[0].step:
                yield from self.close()
                self._continue(row, is_started)
            elif len(self._parts) == _MOST_PARTS:
                self._parts = [_merged(self._parts)]
            self._parts.append(row)
        if rows:
            self._grew = time.monotonic()

    @property
    def _newest(self) -> int:
        if self._parts:
            return self._parts[0].step
        if self._early is not None:
            return self._early.step
        return 0

    def _continue(self, row: Row, is_started: bool) -> None:
        early, self._early = self._early, None
        if early is None or early.step != row.step:
            return
        if set(early.targets).isdisjoint(row.targets):  # not a resumed run
            late_s = time.monotonic() - self._grew
            self._patience_s = min(MOST_PATIENCE_S, max(self._patience_s, 2 * late_s))
        # The log has no restart at step 0: what was written of it stays.
        if row.step or not is_started:
            self._parts = [early]
            self._is_again = True

    def close(self) -> Iterator[Step]:
        """The open step, if any: nothing more belongs to it."""
        if self._parts:
            step = _merged(self._parts), self._is_again
            self._parts = []
            self._is_again = False
            yield step

    def close_early(self) -> Iterator[Step]:
        """The open step, if any, because nothing more came; the rest of it may still follow."""
        for step in self.close():
            self._early, _ = step
            yield step

    @property
    def patience_s(self) -> float:
        """Seconds of quiet after which the open step counts as complete."""
        return max(COMPLETE_AFTER_S, self._patience_s)

    def is_quiet(self, modified: float) -> bool:
        """Whether the open step counts as complete: nothing was written for long, by its growth or
        by the Unix time at which the source was ``modified``."""
        rested_s = max(time.time() - modified, time.monotonic() - self._grew)
        return rested_s >= self.patience_s


def _merged(parts: Sequence[Row]) -> Row:
    """The rows of one step as one; of two readings the later one counts."""
    if len(parts) == 1:
        return parts[0]
    cells = {target: number for row in parts for target, number in row.values}
    return Row(parts[0].step, parts[0].time, cells.items())
