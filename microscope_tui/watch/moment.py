"""A pinned step of a run: the current one, or an earlier one found in the file."""

from bisect import bisect_left
from dataclasses import dataclass, replace

from microscope_tui.runlog import StepEntry, find_step, step_at
from microscope_tui.watch.history import History
from microscope_tui.watch.rows import find_in, steps_in
from microscope_tui.watch.run_watch import RunWatch
from microscope_tui.watch.summaries import complete_summary

_MOST_ROWS_BACK = 512
_NEAR_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Pin:
    """A pinned step, with the entries that were current then."""

    step: int
    latest: StepEntry
    with_counts: StepEntry | None
    generation: int
    """Generation of the log; a replaced log has another one."""


def pin(watch: RunWatch) -> Pin | None:
    """Pin the current step of ``watch``."""
    with watch.lock:
        if watch.latest is None:
            return None
        return Pin(
            watch.latest.record.step, watch.latest, watch.shown.with_counts, watch.generation
        )


def kept_steps(watch: RunWatch) -> tuple[int, int] | None:
    """The first and the last step that can be read again; ``None`` if there are none.

    Less than the whole history where a pipe is spooled: the oldest steps gave way to newer ones, or
    there was no room for the newest. A row that is kept in part counts as lost.
    """
    with watch.lock:
        history, (start, end) = watch.history, watch.source.kept()
        if history is None or not watch.can_seek:
            return None
        first, behind = (bisect_left(history.offsets, at) for at in (start, end))
        if first >= behind:
            return None
        if behind == len(history):
            return history.steps[first], history.last_step
        last = history.steps[behind - 1] - 1
        return (history.steps[first], last) if last >= history.steps[first] else None


def pin_at(watch: RunWatch, step: int) -> Pin | None:
    """The last logged step at or before ``step``, or the nearest one that can be read again.

    ``None`` where it cannot be found now: the log is no plain file, is still being read and has
    restarts in it, or changed under us.

    Raises:
        OSError: the file cannot be read.
    """
    with watch.lock:
        latest, history, generation = watch.latest, watch.history, watch.generation
        kept = kept_steps(watch)
        if history is not None and len(history):
            step = max(step, kept[0] if kept is not None else history.steps[0])
        if latest is not None and step >= latest.record.step:
            return pin(watch)
        if history is None or kept is None:
            return None
        step = min(step, kept[1])
    entry = _find(watch, history, step)
    if entry is None:
        return None
    complete_summary(entry)
    counted = entry if entry.has_counts else _counts_before(watch, history, entry)
    return Pin(entry.record.step, entry, counted, generation)


def _find(watch: RunWatch, history: History, step: int) -> StepEntry | None:
    with watch.lock:
        run, sampled, size = watch.run, watch.sampled, watch.source.size
        row = history.row(history.index_of(step))
    if run is None:
        return None
    end = size if row.end is None else row.end
    if sampled or (end - row.offset > _NEAR_BYTES and row.restart is None):
        return find_step(watch.source.path, run, step, row.offset, max(end, row.offset + 1))
    found = find_in(watch.source.path, run, row, step + 1, size)
    return step_at(watch.source.path, run, found[-1][1]) if found else None


def _counts_before(watch: RunWatch, history: History, entry: StepEntry) -> StepEntry | None:
    """The last entry before ``entry`` with counts, if they are logged rarely."""
    with watch.lock:
        run, sampled, size = watch.run, watch.sampled, watch.source.size
        at = history.index_of(entry.record.step)
        first = bisect_left(history.offsets, watch.source.kept()[0])
        rows = [history.row(row) for row in range(at, max(first - 1, at - _MOST_ROWS_BACK), -1)]
    if run is None:
        return None
    for row in rows:
        if sampled:  # too many steps between two samples to search
            row = replace(row, end=row.offset + 1)
        found = None
        for candidate in steps_in(watch.source.path, run, row, entry.record.step + 1, size):
            found = candidate if candidate.has_counts else found
        if found is not None:
            return found
    return None
