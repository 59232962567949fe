"""Earlier steps, read again from the file: a pinned step, and the experts of a router over time.

The history in memory has no experts, but the offset of the first record of each row: evenly spaced
rows give samples for the price of their lines. Other numbers take a pass over the whole file.
"""

import os
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec.structs import replace

from microscope_tui.measures import mean_of
from microscope_tui.runlog import (
    BadLine,
    Entry,
    LineSplitter,
    RunRecord,
    StepEntry,
    StepRecord,
    UnknownFormat,
    decode_line,
    opened,
    step_at,
)
from microscope_tui.runlog.index import find_step, read_steps
from microscope_tui.watch.history import Column, Curves, History, Window, rows_within
from microscope_tui.watch.run_watch import RunWatch
from microscope_tui.watch.scan import PER_RUN, RowOf, Scan, find_in, steps_in

_MOST_ROWS_BACK = 512
_NEAR_BYTES = 4 << 20


class Pin(msgspec.Struct, frozen=True):
    """A step, with the entries that were current then (``pin``, ``pin_at``)."""

    step: int
    latest: StepEntry
    """The entry of this step."""
    with_counts: StepEntry | None
    """The last entry up to this step with counts; ``None`` if none was found."""
    generation: int
    """A replaced log has another one."""

    @property
    def counts_step(self) -> int | None:
        """The step of ``with_counts``."""
        if self.with_counts is None:
            return None
        return self.with_counts.record.step


def pin(watch: RunWatch) -> Pin | None:
    """The newest step of what is shown; ``None`` before the first. It takes the lock."""
    with watch.lock:
        if (latest := watch.latest) is None:
            return None
        return Pin(latest.record.step, latest, watch.shown.with_counts, watch.generation)


def kept_steps(watch: RunWatch) -> tuple[int, int] | None:
    """The first and the last step that can be read again; ``None`` if there are none.

    A spooled pipe has lost its oldest steps, or its newest; a row kept in part counts as lost.
    """
    with watch.lock:
        history, (start, end) = watch.history, watch.source.kept()
        if not watch.can_seek:
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

    ``None``: not a plain file, one with restarts that is still being read, or one that changed
    under us. It reads from the disk: call it in a worker thread. ``OSError``: the file cannot be
    read.
    """
    with watch.lock:
        history, generation = watch.history, watch.generation
        kept = kept_steps(watch)
        first = min(history.steps[:1], default=step)
        if kept is not None:
            first, last = kept
        step = max(step, first)
        if watch.latest is not None and step >= watch.last_step:
            return pin(watch)
        if kept is None:
            return None
        step = min(step, last)
    entry = _find(watch, history, step)
    if entry is None:
        return None
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


_SLACK_BYTES = 1024  # lines of one run differ by a few digits
_LEAST_BYTES = 1 << 14
_WALK_BYTES = 1 << 19  # bytes to search for a line with counts, if not every line has them


class Sample(msgspec.Struct, frozen=True):
    """One router at one step."""

    step: int
    counts: Sequence[int]
    """Assignments of each expert."""
    bias: Sequence[float] | None
    """The balancing bias of each expert; ``None`` where it is not logged."""


class _Place(msgspec.Struct, frozen=True):
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
    """At most ``count`` steps with counts of one router, oldest first, evenly spread over
    ``window``.

    None that a restart superseded, and none at all where nothing was counted, the log cannot be
    sought or was replaced meanwhile, or the work was ``cancelled``. It reads from the disk.
    ``OSError``: the file cannot be read.
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
    """Evenly spread rows of the history, each up to the next one or to where the run restarted."""
    history, kept = watch.history, kept_steps(watch)
    if kept is None or count < 1:
        return []
    first, last = window or (1, history.last_step)
    first = max(first, kept[0])
    last = min(last, kept[1])
    rows = history.rows(Window(first, last))
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
    """The first step from ``place`` on with counts, if it is near."""
    experts = run.routers[router].num_experts
    before = 0
    end = place.offset + max(size, _WALK_BYTES)
    for entry in read_steps(path, run, place.offset, end, size):
        step = entry.record.step
        if (not before and step != place.step) or step <= before or step >= place.before:
            return None  # the log changed, or what follows is of another life of the run
        before = step
        if step >= place.since and len(entry.counts(router) or ()) == experts:
            return entry
    return None


_PIECE_BYTES = 1 << 18
_REST_S = 0.001  # after every piece: a key must not wait for the next one
_READING_BYTES = 32 << 20


def kept_numbers(watch: RunWatch) -> Sequence[str]:
    """Names of the numbers of the whole run that its history has; others need a ``Reading``."""
    with watch.lock:
        if watch.run is None:
            return ()
        return (*PER_RUN, *watch.history.later)


def course_of(
    held: "RunWatch | Reading", name: str, columns: int, window: Window, router: int = 0
) -> tuple[Sequence[int], Sequence[Column]]:
    """A number over the steps of ``window``: the first step of each column, and the columns.

    ``router``: the index for a number of each router. Empty before a header was read.
    """
    with held.lock:
        curves = Curves(held.history, columns, window)
        return curves.axis(), curves.of(name, router)


class Reading(Scan):
    """The course of numbers of the log, made by ``read_on`` in another thread.

    ``each``: of every router its own; by default the mean of all.
    """

    def __init__(self, watch: RunWatch, names: Sequence[str], *, each: bool = False) -> None:
        super().__init__(lambda *_: (), _READING_BYTES)
        self.lock = threading.Lock()
        self.ended = False
        """Whether it has been at the end of the log."""
        self._watch = watch
        self._generation = watch.generation
        self._names = names
        self._each = each
        self._at = 0
        self._lines = LineSplitter()
        if watch.run is not None:  # the log may have no header
            self.take(watch.run)

    def _begun(self, run: RunRecord) -> tuple[History, RowOf]:
        width = len(run.routers) if self._each else 1
        nothing = (None,) * width

        def row_of(entry: StepEntry) -> Mapping[str, Sequence[float | None]]:
            found = entry.numbers()
            row: dict[str, Sequence[float | None]] = {}
            for name in self._names:
                value = found.get(name)
                values = value if isinstance(value, list) else [value]
                values = values if self._each else [mean_of(values)]
                row[name] = values if len(values) == width else nothing
            return row

        capacity = rows_within(_READING_BYTES, len(self._names) * width)
        return History(dict.fromkeys(self._names, width), capacity), row_of

    @property
    def progress(self) -> float:
        """Share of the log that was read, 0 … 1."""
        source = self._watch.source
        first, last = source.kept()
        size = last if source.translates else min(last, source.size)
        return max(0.0, min(1.0, (self._at - first) / max(1, size - first)))

    def read_on(self, cancelled: Callable[[], bool]) -> None:
        """Read to the end of the log, or until ``cancelled``; call it again when the log has grown.

        It runs in a worker thread and takes ``lock`` only for a moment. ``OSError``: the log cannot
        be read.
        """
        source = self._watch.source
        with suppress(UnknownFormat), opened(source.path) as file:
            while self._watch.generation == self._generation and not cancelled():
                first = source.kept()[0]
                if self._at < first:  # a pipe: the oldest lines were dropped
                    self._at = first
                    self._lines = LineSplitter()
                data = os.pread(file, _PIECE_BYTES, self._at)
                if not data:
                    self.ended = True
                    break
                self._at += len(data)
                entries = list(self._entries(data))
                with self.lock:
                    for entry in entries:
                        self.take(entry)
                    self.commit()
                self.make_room(self.lock)
                time.sleep(_REST_S)

    def _entries(self, data: bytes) -> Iterator[Entry]:
        """The records that these bytes complete; nothing is derived from counts."""
        for _, line in self._lines.feed(data):
            with suppress(BadLine):
                record = decode_line(line)
                if isinstance(record, StepRecord):
                    entry = StepEntry(record, line, 0)
                    entry.numbers()
                    yield entry
                elif record is not None:
                    yield record
