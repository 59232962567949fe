"""When a run that is followed is over: at once, or only after something could have come.

What ends while it is followed is over. What had ended, or gone silent, before the following began
may be the log of a job that has just been started again and will go on in a minute: it is waited
for. Who wanted to end (finished, failed, a collapse) does not come back by itself.
"""

import time
from collections.abc import Callable

from microscope_tui.console import say
from microscope_tui.runlog.records import EventRecord
from microscope_tui.watch.run_watch import RunWatch
from microscope_tui.watch.state import RunState

_HOW = {RunState.CRASHED: "has been silent for long", RunState.DELETED: "was deleted"}
_FOR_GOOD = ("finished", "failed", "collapse")


class Patience:
    """Remembers how the run stood at the first look, and for how long it has stood so."""

    def __init__(
        self, watch: RunWatch, wait_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``wait_s``: how long a run is waited for in which nothing came since the first look."""
        self.remarks: tuple[str, ...] = ()
        """What is to be said of a waiting that was in vain."""
        self._watch = watch
        self._wait_s = wait_s
        self._clock = clock
        self._first: tuple[int, int, EventRecord | None] | None = None
        self._since = 0.0
        self._said = False

    def is_over(self) -> bool:
        """Nothing more is expected of the run. Ask whenever all that is there has been read."""
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
                f"{watch.path}: {how}, waiting up to {left:,.0f} s for it to go on "
                "(--wait 0 does not)"
            )
        return False

    def _went_on(self) -> bool:
        """Something came since the first look. After an end that is a record, not half a line."""
        assert self._first is not None
        generation, size, end = self._first
        watch = self._watch
        if watch.generation != generation or watch.scan.end is not end:
            return True
        return end is None and watch.source.size != size

    def _may_go_on(self) -> bool:
        watch, end = self._watch, self._watch.scan.end
        if not watch.source.seekable:  # an archive is written no more
            return False
        return end is None or end.reason not in _FOR_GOOD
