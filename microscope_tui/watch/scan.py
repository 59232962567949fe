"""The scan: collects every record of a log in order.

Header, latest step, history and events. It decodes no matrix and judges nothing, so it reads a long
log at the speed of the disk; the judgement follows at its own pace.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from microscope_tui.runlog import Entry, EventRecord, RunRecord, StepEntry, seconds_between
from microscope_tui.watch.history import History, Row
from microscope_tui.watch.summaries import complete_summary, new_history, row_maker

MEAN_OF = 8
"""Steps whose counts are kept, for a mean."""
Reread = Callable[[Row, RunRecord, int], Iterable[StepEntry]]
"""The steps of a row below a limit, from the file; empty if the log cannot be read again."""


class RepeatedStep(ValueError):
    """A repeated step; the message says which."""


class Scan:
    """State of all records so far; ``reread`` is called when a restart cuts a row of history."""

    def __init__(self, reread: Reread, memory_bytes: int) -> None:
        self.run: RunRecord | None = None
        self.latest: StepEntry | None = None
        self.with_counts: StepEntry | None = None
        """The latest step with counts."""
        self.recent: deque[StepEntry] = deque(maxlen=MEAN_OF)
        """The last steps with counts."""
        self.end: EventRecord | None = None
        self.lost_records = 0
        """Records that the writer reported as lost."""
        self.evaluations: deque[EventRecord] = deque(maxlen=1000)
        self.history: History | None = None
        self.expected_steps = 0
        self.intervals: deque[float] = deque(maxlen=33)
        """Seconds between the last records."""
        self._row_of = row_maker(())
        self._reread = reread
        self._memory_bytes = memory_bytes

    def take(self, entry: Entry) -> None:
        """Add one record.

        Raises:
            RepeatedStep: the same step twice in a row; the first one stands.
        """
        match entry:
            case StepEntry():
                self._take_step(entry)
            case RunRecord():
                self._take_run(entry)
            case EventRecord():
                self._take_event(entry)

    def commit(self) -> bool:
        """Make added records visible; true if there were any."""
        return self.history is not None and self.history.commit()

    def make_room(self, lock: AbstractContextManager[object]) -> None:
        """Halve a full history, mostly outside ``lock``: only the caller changes it."""
        if (history := self.history) is not None and history.full:
            with lock:
                history.commit()
            halved = history.halved()
            with lock:
                self.history = halved

    def _take_run(self, run: RunRecord) -> None:
        before, self.run, self.end = self.run, run, None
        if before is not None and before.routers != run.routers:
            self.latest = self.with_counts = None  # another model from here on
            self.recent.clear()
        if before is None or before.routers != run.routers or self.history is None:
            self.history = new_history(run, self._memory_bytes, self.expected_steps)
            self._row_of = row_maker(run.routers)
        elif run.resumed_at_step is not None:
            # Without a step to resume at, the steps themselves show whether they go backwards.
            self._restart(max(1, min(run.resumed_at_step, self.history.last_step + 1)), before)

    def _take_step(self, entry: StepEntry) -> None:
        run, history, step = self.run, self.history, entry.record.step
        if run is None or history is None:
            return
        if self.latest is not None and self.latest.record.step == step <= history.last_step:
            raise RepeatedStep(f"step {step:,} again: two writers?")
        if step <= history.last_step and (len(history) or history.last_step):
            self._restart(step, run)
        self.end = None
        complete_summary(entry)
        self._time_step(self.latest, entry)
        self.latest = entry
        if entry.has_counts:
            self.with_counts = entry
            self.recent.append(entry)
        elif self.with_counts is not None and self.with_counts.record.step >= step:
            self.with_counts = None  # counted after the restart point
        history.add(step, self._row_of(entry), entry.offset, entry.record.time)

    def _time_step(self, before: StepEntry | None, entry: StepEntry) -> None:
        duration = seconds_between(before.record if before else None, entry.record)
        if duration is not None:
            self.intervals.append(duration)

    def _restart(self, step: int, run: RunRecord) -> None:
        """Forget what was recorded about ``step`` and later."""
        history = self.history
        assert history is not None
        torn = history.restart(step)
        if torn is not None:
            for entry in self._reread(torn, run, step):
                complete_summary(entry)
                history.add(entry.record.step, self._row_of(entry), entry.offset, entry.record.time)
            history.close_row()
        history.last_step = step - 1
        kept = [e for e in self.evaluations if e.step is None or e.step < step]
        self.evaluations = deque(kept, maxlen=self.evaluations.maxlen)

    def _take_event(self, event: EventRecord) -> None:
        if event.event == "end":
            self.end = event
        elif event.event == "eval":
            self.evaluations.append(event)
        elif event.event == "lost_records":
            count = event.values.get("count", 0)
            self.lost_records += int(count) if math.isfinite(count) and count > 0 else 0
