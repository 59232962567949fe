"""A moment of a run to look at: the present one, or any step of the past found in the file."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from microscope_tui.runlog.reader import StepEntry
from microscope_tui.runlog.seek import find_step, read_steps
from microscope_tui.watch.history import History
from microscope_tui.watch.run_watch import RunWatch
from microscope_tui.watch.summaries import complete_summary

_MOST_ROWS_BACK = 512
_NEAR_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Pin:
    """A moment: the step and the entries that were current then."""

    step: int
    latest: StepEntry
    with_counts: StepEntry | None
    generation: int
    """Of the log it was found in; a replaced log has another one."""


def pin(watch: RunWatch) -> Pin | None:
    """The present moment of ``watch``, to hold on to while the run goes on."""
    with watch.lock:
        if watch.latest is None:
            return None
        return Pin(
            watch.latest.record.step, watch.latest, watch.shown.with_counts, watch.generation
        )


def pin_at(watch: RunWatch, step: int) -> Pin | None:
    """The last logged step at or before ``step``, or the first one there is.

    ``None`` where it cannot be found now: the log is no plain file, is still being read and has
    restarts in it, or changed under us.

    Raises:
        OSError: the file cannot be read.
    """
    with watch.lock:
        latest, history, generation = watch.latest, watch.history, watch.generation
        if latest is not None and step >= latest.record.step:
            return pin(watch)
        if history is None or not len(history) or not watch.can_seek:
            return None
        step = max(step, history.steps[0])
    entry = _find(watch, history, step)
    if entry is None:
        return None
    complete_summary(entry)
    counted = entry if entry.has_counts else _counts_before(watch, history, entry)
    return Pin(entry.record.step, entry, counted, generation)


def _find(watch: RunWatch, history: History, step: int) -> StepEntry | None:
    with watch.lock:
        run, at, sampled = watch.run, history.index_of(step), watch.sampled
        start = history.offsets[at]
        last = at + 1 >= len(history)
        end = watch.source.size if last else history.offsets[at + 1]
        restarted = not last and history.restarted_between(at, at + 1)
    if run is None:
        return None
    if (sampled or end - start > _NEAR_BYTES) and not restarted and end > start:
        return find_step(watch.path, run, step, start, end)
    best = None
    for entry in islice(read_steps(watch.path, run, start), history.stride):
        if entry.record.step > step or (best and entry.record.step <= best.record.step):
            break
        best = entry
    return best


def _counts_before(watch: RunWatch, history: History, entry: StepEntry) -> StepEntry | None:
    """The last entry before ``entry`` that holds counts, where they are logged rarely."""
    with watch.lock:
        at = history.index_of(entry.record.step)
        first = max(0, at - _MOST_ROWS_BACK)
        starts = list(history.offsets[first : at + 1])
        # Behind a restart a row goes on in the file with steps that no longer hold.
        limits = [*history.steps[first + 1 : at + 1], entry.record.step + 1]
    for start, limit in zip(reversed(starts), reversed(limits), strict=True):
        found = None
        for candidate in _row(watch, history, start):
            if candidate.record.step >= limit:
                break
            found = candidate if candidate.has_counts else found
        if found is not None:
            return found
    return None


def _row(watch: RunWatch, history: History, start: int) -> Iterator[StepEntry]:
    assert watch.run is not None
    return islice(read_steps(watch.path, watch.run, start, start), history.stride)
