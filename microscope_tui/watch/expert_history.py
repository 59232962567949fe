"""The experts of one router over time, read again from a bounded number of lines.

The history in memory has routers, not experts. But each of its rows has the file offset of its
first record, so evenly spaced rows give evenly spaced samples for the price of their lines.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from microscope_tui.runlog import RunReader, RunRecord, StepEntry, UnknownFormat, read_at
from microscope_tui.watch.history import Window
from microscope_tui.watch.moment import kept_steps
from microscope_tui.watch.run_watch import RunWatch

_SLACK_BYTES = 1024  # lines of one run differ by a few digits
_LEAST_BYTES = 1 << 14
_WALK_BYTES = 1 << 19  # bytes to search for a line with counts, if not every line has them


@dataclass(frozen=True, slots=True)
class Sample:
    """One step of one router."""

    step: int
    counts: Sequence[int]
    bias: Sequence[float] | None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where to look for a sample: the line at ``offset``, and valid lines after it."""

    step: int
    offset: int
    since: int
    before: int


def samples(
    watch: RunWatch,
    router: int,
    count: int,
    window: Window | None = None,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[Sample]:
    """At most ``count`` steps with counts of one router, oldest first, evenly spread.

    Steps that a restart has superseded are never among them. Empty where nothing was counted, the
    log cannot be sought, it was replaced meanwhile, or the work was ``cancelled``.

    Raises:
        OSError: the file cannot be read.
    """
    with watch.lock:
        run, generation, counted = watch.run, watch.generation, watch.shown.with_counts
        places = _places(watch, count, window)
    if run is None or not 0 <= router < len(run.routers):
        return []
    size = max(_LEAST_BYTES, counted.length + _SLACK_BYTES if counted is not None else 0)
    biased = counted is not None and counted.biases(router) is not None
    found: list[Sample] = []
    for place in places:
        if cancelled() or watch.generation != generation:
            return []
        entry = _counted(watch.source.path, run, place, size, router)
        if entry is not None:
            row = entry.counts(router) or ()
            bias = entry.biases(router) if biased else None
            sound = bias is not None and len(bias) == len(row)
            found.append(Sample(entry.record.step, row, bias if sound else None))
    return found if watch.generation == generation else []


def _places(watch: RunWatch, count: int, window: Window | None) -> list[_Place]:
    """Evenly spaced rows of the history, each up to the next one or to where it restarted."""
    history, kept = watch.history, kept_steps(watch)
    if history is None or kept is None or count < 1:
        return []
    first, last = window or (1, history.last_step)
    first, last = max(first, kept[0]), min(last, kept[1])
    rows = history.rows(first, last)
    chosen = sorted(
        {rows[i * (len(rows) - 1) // max(1, count - 1)] for i in range(count)} if rows else ()
    )
    ends = [*(history.steps[at] for at in chosen[1:]), last + 1]
    places = []
    for at, end in zip(chosen, ends, strict=True):
        step = history.steps[at]
        before = min((r for r in history.restarts if step < r < end), default=end)
        places.append(_Place(step, history.offsets[at], max(first, step), before))
    return places


def _counted(path: Path, run: RunRecord, place: _Place, size: int, router: int) -> StepEntry | None:
    """The first step from ``place`` on with counts of the router, if it is near."""
    experts = run.routers[router].num_experts
    before = 0
    for entry in _steps_from(path, run, place.offset, size):
        step = entry.record.step
        if (not before and step != place.step) or step <= before or step >= place.before:
            return None  # the log changed, or what follows is of another life of the run
        before = step
        if step >= place.since and len(entry.counts(router) or ()) == experts:
            return entry
    return None


def _steps_from(path: Path, run: RunRecord, offset: int, size: int) -> Iterator[StepEntry]:
    """The steps from the line at ``offset`` on, ``size`` bytes read at a time, not very far."""
    reader, at = RunReader(run.run, run, offset), offset
    while at - offset < max(size, _WALK_BYTES) and (data := read_at(path, at, size)):
        at += len(data)
        try:
            for entry in reader.feed(data):
                if isinstance(entry, RunRecord):
                    return
                if isinstance(entry, StepEntry):
                    yield entry
        except UnknownFormat:
            return
