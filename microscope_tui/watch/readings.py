"""Numbers over time that the history does not keep, read from the log when they are asked for.

Any number of a step line has a course: those that the history keeps at once, the others after one
pass over the log in another thread, from where a pass that was stopped left off.
"""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import msgspec

from microscope_tui.measures import mean_of
from microscope_tui.runlog import (
    Course,
    Entry,
    RunReader,
    RunRecord,
    StepEntry,
    UnknownFormat,
    opened,
)
from microscope_tui.watch.history import Column, Curves, History, Window, rows_within
from microscope_tui.watch.run_watch import RunWatch
from microscope_tui.watch.scan import PER_RUN

_PIECE_BYTES = 1 << 18
_MEMORY_BYTES = 32 << 20


class NumberCourse(msgspec.Struct, frozen=True):
    """A number over the steps of a window; ``columns[i]`` begins at ``steps[i]``."""

    steps: Sequence[int] = ()
    columns: Sequence[Column] = ()


def kept_numbers(watch: RunWatch) -> Sequence[str]:
    """Names of the numbers whose whole course is in memory."""
    with watch.lock:
        return (*PER_RUN, *watch.history.later) if watch.history is not None else ()


def course_of(watch: RunWatch, name: str, columns: int, window: Window) -> NumberCourse:
    """The course of a number that is in memory."""
    with watch.lock:
        curves = Curves(watch.history, columns, window)
        return NumberCourse(curves.axis(), curves.of(name))


class Reading:
    """The course of numbers that are read from the log of ``watch``.

    ``read_on`` is called in a worker thread; everything else may be called meanwhile.
    """

    def __init__(self, watch: RunWatch, names: Sequence[str], routers: int = 0) -> None:
        """``routers``: keep numbers of ``router.…`` for each of so many; by default their mean."""
        self.names = names
        self.watch = watch
        self.generation = watch.generation
        self.ended = False
        """Whether it has reached the end of the log once."""
        self._routers = routers
        self._lock = threading.Lock()
        self._at = 0
        self._begin(0, None)

    def _begin(self, start: int, run: RunRecord | None) -> None:
        """Read from a line at ``start`` on, under a known header."""
        self._at = start
        self._reader = RunReader(self.watch.file.name, run, start)
        with self._lock:
            self._forget(run)

    def _forget(self, run: RunRecord | None) -> None:
        """Begin the course of another model."""
        widths = dict.fromkeys(self.names, max(1, self._routers))
        self._history = History(widths, rows_within(_MEMORY_BYTES, sum(widths.values())))
        self._run = run
        self._course = Course()

    @property
    def valid(self) -> bool:
        """Whether the log is still the one that was read."""
        return self.generation == self.watch.generation

    @property
    def progress(self) -> float:
        """Share of the bytes that has been read, 0 … 1."""
        first, last = self._range()
        return max(0.0, min(1.0, (self._at - first) / max(1, last - first)))

    def _range(self) -> tuple[int, int]:
        """The bytes that there are to read, at this moment."""
        source = self.watch.source
        first, last = source.kept()
        return first, last if source.translates else min(last, source.size)

    def course(self, name: str, columns: int, window: Window, router: int = 0) -> NumberCourse:
        """What has been read of a number, of one router where each is kept."""
        with self._lock:
            curves = Curves(self._history, columns, window)
            return NumberCourse(curves.axis(), curves.of(name, router))

    def read_on(self, cancelled: Callable[[], bool]) -> None:
        """Read to the end of the log, or until ``cancelled``.

        Raises:
            OSError: the log cannot be read.
        """
        with suppress(UnknownFormat), opened(self.watch.source.path) as file:
            while self.valid and not cancelled():
                first, _ = self._range()
                if self._at < first:  # the oldest lines of a pipe were dropped
                    self._begin(first, self.watch.run)
                data = os.pread(file, _PIECE_BYTES, self._at)
                if not data:
                    self.ended = True
                    return
                self._at += len(data)
                self._add([(e, self._values(e)) for e in self._reader.feed(data)])
                if self._history.full:
                    halved = self._history.halved()
                    with self._lock:
                        self._history = halved

    def _values(self, entry: Entry) -> Mapping[str, Sequence[float | None]]:
        """The numbers of a step that are asked for."""
        if not isinstance(entry, StepEntry):
            return {}
        numbers = entry.numbers()
        row: dict[str, Sequence[float | None]] = {}
        for name in self.names:
            value = numbers.get(name)
            values = value if isinstance(value, list) else [value]
            if self._routers:
                same = len(values) == self._routers
                row[name] = values if same else [None] * self._routers
            else:
                row[name] = (mean_of(values),)
        return row

    def _add(self, rows: Sequence[tuple[Entry, Mapping[str, Sequence[float | None]]]]) -> None:
        with self._lock:
            for entry, values in rows:
                if isinstance(entry, RunRecord):
                    if self._run is not None and self._run.routers != entry.routers:
                        self._forget(entry)
                    self._run = entry
                history = self._history
                cut = self._course.take(entry)
                if cut is not None and history.restart(cut) is not None:
                    history.last_step = cut - 1  # of a row that is cut, nothing is read again
                    history.close_row()
                if isinstance(entry, StepEntry) and not self._course.repeats:
                    history.add(entry.record.step, values)
            self._history.commit()
