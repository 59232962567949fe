"""The file is its own index: steps grow with the byte offset.

All but ``glance`` raise ``OSError`` for a file that cannot be read.

Two short reads give a run's name, plan, last step and end (``glance``), so that a list of a
thousand runs does not read a thousand logs. A first picture of a history (``sample``) costs as many
small reads as the screen has columns, whatever the size of the file. Between two known lines
``read_steps`` reads on, ``surviving_steps`` reads a stretch with restarts in it, and ``find_step``
halves a stretch until a single read covers what is left.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from microscope_tui.runlog.compressed import ARCHIVE_SUFFIXES
from microscope_tui.runlog.decode import decode_line
from microscope_tui.runlog.reader import Course, Entry, RunReader, StepEntry, drop_from
from microscope_tui.runlog.records import (
    BadLine,
    EventRecord,
    Record,
    RunRecord,
    StepRecord,
    UnknownFormat,
    seconds_between,
)
from microscope_tui.runlog.tail import Stamp, identity_of, opened, read_lines_at

_END_BYTES = 1 << 13  # a glance at an end of the file …
_MOST_END_BYTES = 1 << 22  # … and what it reads there at most
_FIRST_BYTES = 1 << 16
_READ_BYTES = 1 << 19
_NEAR_BYTES = 1 << 20
_LONGEST_LINE = 8 << 20
_MOST_EVENTS = 4  # that follow a step, as a rule


class Glance(msgspec.Struct, frozen=True):
    """The two ends of a log, read without what is between them."""

    run: RunRecord | None = None
    last: StepRecord | None = None
    """The last whole step."""
    step_time_s: float | None = None
    """Seconds between the last two steps, if known."""
    end: EventRecord | None = None
    """The event that ended the run, if it is the last record."""
    error: str | None = None
    identity: Stamp | None = None
    """State of the file that was read; ``None`` if it cannot be read."""


def glance(path: Path) -> Glance:
    """Never raises because of the content. A late header may be in the middle: then the first one
    counts."""
    try:
        with opened(path) as file:
            identity = identity_of(file)
            if path.suffix in ARCHIVE_SUFFIXES:
                return Glance(identity=identity)  # its end is unknown before it is unpacked
            steps, end, late = _last(file, identity.size)
            steps.sort(key=lambda step: step.step)
            if late is None:
                first = read_lines_at(file, 0, _END_BYTES, _MOST_END_BYTES).partition(b"\n")[0]
                record = _record(first)
                if isinstance(record, RunRecord):
                    late = record
            if not steps:
                return Glance(late, end=end, identity=identity)
            before = None
            if len(steps) == 2:
                before = steps[0]
            step_time = seconds_between(before, steps[-1])
            return Glance(late, steps[-1], step_time, end, identity=identity)
    except UnknownFormat as error:
        return Glance(error=str(error))
    except OSError as error:
        return Glance(error=error.strerror or str(error))


def _last(file: int, size: int) -> tuple[list[StepRecord], EventRecord | None, RunRecord | None]:
    """The last two steps that hold, an end if nothing follows it, and a late header."""
    want = _END_BYTES
    while True:
        start = max(0, size - want)
        lines = os.pread(file, want, start).split(b"\n")
        if start:
            del lines[0]  # the end of a line
        steps, end, late = _end_of(map(_record, lines))
        if len(steps) >= 2 or start == 0 or want >= _MOST_END_BYTES:
            return steps[-2:], end, late
        want *= 8


def _end_of(
    records: Iterable[Record | None],
) -> tuple[list[StepRecord], EventRecord | None, RunRecord | None]:
    """As ``_last``: steps behind the last header, or before it if there are none yet."""
    steps, before = list[StepRecord](), list[StepRecord]()
    end: EventRecord | None = None
    late: RunRecord | None = None
    for record in records:
        if isinstance(record, StepRecord):
            steps.append(record)
            end = None
        elif isinstance(record, RunRecord):
            before = steps or before
            steps = []
            end = None
            late = record
        elif isinstance(record, EventRecord) and record.event == "end":
            end = record
    if late is not None and late.resumed_at_step is not None:
        before = [step for step in before if step.step < late.resumed_at_step]
    return steps or before, end, late


def _record(line: bytes) -> Record | None:
    with suppress(BadLine):  # a torn or foreign line: the full reader counts those
        return decode_line(line)
    return None


class Overview(msgspec.Struct):
    """Steps spread evenly over a log, in increasing order."""

    run: RunRecord | None = None
    samples: list[StepEntry] = msgspec.field(default_factory=list)
    line_bytes: int = 0
    """Length of a typical line."""
    monotonic: bool = True
    """Whether no sample went backwards: between two of them steps grow with the offset."""

    end: EventRecord | None = None
    """The event that ended the run, if it is the last record."""

    def take(self, lines: bytes, offset: int, name: str) -> bool:
        """Without the steps that those of these whole lines supersede; whether there is one."""
        reader = RunReader(name, self.run, offset)
        has_step = False
        for entry in reader.feed(lines):
            if isinstance(entry, StepEntry):
                has_step = True
                self.keep(entry)
            elif isinstance(entry, EventRecord) and entry.event == "end":
                self.end = entry
        self.run = reader.run
        return has_step

    def keep(self, entry: StepEntry) -> None:
        """Add a step that was found behind the others; earlier ones that it supersedes are
        dropped.
        """
        if self.samples and entry.offset <= self.samples[-1].offset:
            return
        self.end = None
        while self.samples and self.samples[-1].record.step >= entry.record.step:
            self.samples.pop()
            self.monotonic = False
        self.samples.append(entry)


def sample(path: Path, name: str, count: int) -> Overview:
    """About ``count`` steps of the whole file, without torn lines and other records.

    A restart between two samples is found by the full scan only.

    Raises:
        OSError: the file cannot be read.
        UnknownFormat: the log has another format version.
    """
    overview = Overview()
    with opened(path) as file:
        size = os.fstat(file).st_size
        head = read_lines_at(file, 0, _FIRST_BYTES, _LONGEST_LINE, 2)
        reader = RunReader(name)
        entries = list(reader.feed(head[: head.rfind(b"\n") + 1]))
        steps = [entry for entry in entries if isinstance(entry, StepEntry)]
        # A header may be a hundred times longer than the steps behind it.
        overview.line_bytes = max((step.length for step in steps[:8]), default=len(head) + 1)
        overview.run = reader.run
        for entry in steps[:4]:
            overview.keep(entry)
        for index in range(1, count):
            start = size * index // count
            for _ in range(1 + _MOST_EVENTS):
                found = line_after(file, start, size, overview.line_bytes + 32)
                if found is None or overview.take(found[1], found[0], name):
                    break
                start = found[0] + len(found[1]) - 1
        start = max(0, size - 3 * overview.line_bytes)  # on to the last whole line
        data = os.pread(file, size - start, start)
        begin = data.find(b"\n") + 1
        end = data.rfind(b"\n") + 1
        overview.take(data[begin:end], start + begin, name)
    return overview


def sample_of(lines: bytes, name: str) -> Overview:
    """The overview of lines that a source sampled; their places in the log are unknown."""
    overview = Overview()
    overview.take(lines, 0, name)
    overview.monotonic = False
    return overview


def read_steps(
    path: Path, run: RunRecord, start: int, end: int | None = None, piece: int = _READ_BYTES
) -> Iterator[StepEntry]:
    """The steps from the line at ``start``, until the next ``run`` record or behind ``end``.

    ``piece``: bytes that are read at a time. ``OSError``: the file cannot be read.
    """
    for _, entry in _between(path, run, start, end, piece):
        if isinstance(entry, RunRecord):
            return
        if isinstance(entry, StepEntry):
            yield entry


def surviving_steps(
    path: Path, run: RunRecord, start: int, end: int, limit: int, *, restarted: bool
) -> list[tuple[int, int]]:
    """Step and offset of the lines in ``start`` … ``end`` that hold steps below ``limit``.

    Args:
        path: The log.
        run: The header that these lines were written under.
        start: Offset of the beginning of a line.
        end: Offset where reading ends; so does another header.
        limit: Only smaller steps are returned.
        restarted: Steps below ``limit`` may be superseded in there; else they only grow, and
            reading ends with them.

    Raises:
        OSError: the file cannot be read.
    """
    kept: list[tuple[int, int]] = []
    course = Course()
    for at, entry in _between(path, run, start, end):
        if at >= end or (isinstance(entry, RunRecord) and entry.routers != run.routers):
            break
        if isinstance(entry, StepEntry) and entry.record.step >= limit and not restarted:
            break
        drop_from(kept, course.take(entry))
        if isinstance(entry, StepEntry) and not course.repeats:
            kept.append((entry.record.step, at))
    drop_from(kept, limit)
    return kept


def step_at(path: Path, run: RunRecord, offset: int) -> StepEntry | None:
    """The step whose line begins at ``offset``; ``None`` if the file has changed there.

    ``OSError``: the file cannot be read.
    """
    entry = next(read_steps(path, run, offset), None)
    if entry is None or entry.offset != offset:
        return None
    return entry


def _between(
    path: Path, run: RunRecord, start: int, end: int | None, piece: int = _READ_BYTES
) -> Iterator[tuple[int, Entry]]:
    """Records from the line at ``start`` on, each with its offset; some lines behind ``end``."""
    reader = RunReader(run.run, run, start)
    with suppress(UnknownFormat), opened(path) as file:
        while data := os.pread(file, piece, start):
            start += len(data)
            for entry in reader.feed(data):
                yield reader.lines.line_start, entry
            if end is not None and start >= end:
                return


def find_step(path: Path, run: RunRecord, step: int, start: int, end: int) -> StepEntry | None:
    """The last entry at or before ``step`` of those that begin in ``start`` … ``end``.

    ``start`` is the beginning of a line; steps grow in between. Of a step that appears twice the
    first entry is taken; ``None`` if all are later. ``OSError``: the file cannot be read.
    """
    with opened(path) as file:
        low, high = start, end
        while high - low > _NEAR_BYTES:
            middle = (low + high) // 2
            probe = _step_after(file, middle, high)
            if probe is None:  # no step begins between there and the end
                high = middle
            elif probe[1] <= step:
                low = probe[0]
            else:
                high = middle
    best = None
    for entry in read_steps(path, run, low, high + _LONGEST_LINE):
        if entry.record.step > step or (best and entry.record.step < best.record.step):
            break
        if best is None or entry.record.step > best.record.step:  # of a step twice, the first
            best = entry
    return best


def _step_after(file: int, start: int, end: int) -> tuple[int, int] | None:
    """Offset and number of the first step whose line begins after ``start`` and before ``end``."""
    while (found := line_after(file, start, end)) is not None:
        at, line = found
        with suppress(BadLine, UnknownFormat):
            if isinstance(record := decode_line(line), StepRecord):
                return at, record.step
        start = at + len(line) - 1
    return None


def line_after(file: int, start: int, end: int, guess: int = 1 << 16) -> tuple[int, bytes] | None:
    """Offset and bytes of the first whole line that begins after ``start`` and before ``end``."""
    data = read_lines_at(file, start, 2 * guess, _LONGEST_LINE, 2)
    begin = data.find(b"\n") + 1
    stop = data.find(b"\n", begin) + 1 if begin else 0
    if not stop or start + begin >= end:
        return None
    return start + begin, data[begin:stop]
