"""When a followed run is over: at once, or after a wait.

A run that ends while it is followed is over. A run that had stopped or gone silent before may
belong to a job that was just restarted, so it is waited for. A run that finished, failed or stopped
on a collapse does not come back.
"""

import time
from collections.abc import Callable

from microscope_tui.console import say
from microscope_tui.runlog import EventRecord
from microscope_tui.watch import RunState, RunWatch

_HOW = {RunState.CRASHED: "has been silent for long", RunState.DELETED: "was deleted"}
_FOR_GOOD = ("finished", "failed", "collapse")


class Patience:
    """Tracks the state of the run at the first poll, and how long it has lasted."""

    def __init__(
        self, watch: RunWatch, wait_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``wait_s``: how long to wait for a run without new records."""
        self.remarks: tuple[str, ...] = ()
        """The remark after waiting without a result."""
        self._watch = watch
        self._wait_s = wait_s
        self._clock = clock
        self._first: tuple[int, int, EventRecord | None] | None = None
        self._since = 0.0
        self._said = False

    def is_over(self) -> bool:
        """Whether the run is over. Call whenever the log has been read to its end."""
        watch = self._watch
        if self._first is None:
            self._first = watch.generation, watch.source.size, watch.scan.end
            self._since = self._clock()
        state, _ = watch.state()
        if not state.ended:
            return False
        if self._went_on() or not self._may_go_on():
            return True
        left = self._wait_s - (self._clock() - self._since)
        if left <= 0:
            if self._said:
                self.remarks = (f"waited {self._wait_s:,.0f} s; the run did not resume",)
            return True
        if not self._said:
            self._said = True
            how = _HOW.get(state, "has stopped")
            say(
                f"{watch.path}: {how}, waiting up to {left:,.0f} s for it to resume "
                "(--wait 0 does not)"
            )
        return False

    def _went_on(self) -> bool:
        """Whether records came since the first poll. After an end, whole records only."""
        assert self._first is not None
        generation, size, end = self._first
        watch = self._watch
        if watch.generation != generation or watch.scan.end is not end:
            return True
        return end is None and watch.source.size != size

    def _may_go_on(self) -> bool:
        watch, end = self._watch, self._watch.scan.end
        if not watch.source.seekable:  # an archive no longer grows
            return False
        return end is None or end.reason not in _FOR_GOOD
