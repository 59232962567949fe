"""The file is its own index: steps grow with the byte offset, so nothing is indexed up front.

A first picture of a whole history (``sample``) costs as many small reads as the screen has columns,
whatever the size of the file: seek, skip to the next newline, decode that record without matrices.
``read_steps`` reads on from a known line; ``find_step`` narrows a stretch of the file, in which
steps are known to grow, by interpolation until a single read covers what is left;
``surviving_steps`` reads a stretch with restarts in it.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from microscope_tui.runlog.decode import decode_line
from microscope_tui.runlog.reader import Entry, RunReader, StepEntry
from microscope_tui.runlog.records import BadLine, EventRecord, RunRecord, StepRecord, UnknownFormat
from microscope_tui.runlog.tail import open_regular_file

_READ_BYTES = 1 << 19
_NEAR_BYTES = 1 << 20
_LONGEST_LINE = 8 << 20
_MOST_PROBES = 40
_FIRST_BYTES = 1 << 16
_TAIL_LINES = 64


def read_steps(
    path: Path, run: RunRecord, start: int, end: int | None = None
) -> Iterator[StepEntry]:
    """The steps from the line at ``start`` on, until the next ``run`` record or ``end``.

    Raises:
        OSError: the file cannot be read.
    """
    for _, entry in _read(path, run, start, end):
        if isinstance(entry, RunRecord):
            return
        if isinstance(entry, StepEntry):
            yield entry


def surviving_steps(
    path: Path, run: RunRecord, start: int, end: int, limit: int, *, restarted: bool
) -> list[tuple[int, int]]:
    """Step and offset of the lines in ``start`` … ``end`` that hold steps below ``limit``.

    Args:
        restarted: steps below ``limit`` may be superseded in there; else they only grow, and
            reading ends with them.

    Raises:
        OSError: the file cannot be read.
    """
    kept: list[tuple[int, int]] = []
    before: int | None = None
    for at, entry in _read(path, run, start, end):
        if at >= end:
            break
        if isinstance(entry, RunRecord):
            if entry.routers != run.routers:
                break
            if entry.resumed_at_step is not None:
                _drop_from(kept, max(1, entry.resumed_at_step))
        elif isinstance(entry, StepEntry):
            step = entry.record.step
            if step >= limit and not restarted:
                break
            if not (kept and kept[-1][0] == step == before):  # of a step twice, the first
                _drop_from(kept, step)
                kept.append((step, at))
            before = step
    _drop_from(kept, limit)
    return kept


def _drop_from(kept: list[tuple[int, int]], step: int) -> None:
    while kept and kept[-1][0] >= step:
        kept.pop()


def step_at(path: Path, run: RunRecord, offset: int) -> StepEntry | None:
    """The step whose line begins at ``offset``.

    Raises:
        OSError: the file cannot be read.
    """
    entry = next(read_steps(path, run, offset), None)
    return entry if entry is not None and entry.offset == offset else None


def _read(path: Path, run: RunRecord, start: int, end: int | None) -> Iterator[tuple[int, Entry]]:
    """Records from the line at ``start`` on, each with its offset; some lines behind ``end``."""
    reader = RunReader(run.run, run, start)
    file = open_regular_file(path)
    try:
        while data := os.pread(file, _READ_BYTES, start):
            start += len(data)
            for entry in reader.feed(data):
                yield reader.line_start, entry
            if end is not None and start >= end:
                return
    except UnknownFormat:
        return
    finally:
        os.close(file)


def find_step(path: Path, run: RunRecord, step: int, start: int, end: int) -> StepEntry | None:
    """The last entry at or before ``step`` of those that begin in ``start`` … ``end``.

    ``start`` is the beginning of a line; steps grow in between.

    Raises:
        OSError: the file cannot be read.
    """
    file = open_regular_file(path)
    try:
        low, high = start, end
        low_step: int | None = None
        high_step: int | None = None
        for _ in range(_MOST_PROBES):
            if high - low <= _NEAR_BYTES:
                break
            middle = _guess(low, high, low_step, high_step, step)
            probe = _step_after(file, middle, high)
            if probe is None:  # no step begins between there and the end
                high = middle
                continue
            at, found = probe
            if found <= step:
                low, low_step = at, found
            else:
                high, high_step = middle, found
    finally:
        os.close(file)
    best = None
    for entry in read_steps(path, run, low, high + _LONGEST_LINE):
        if entry.record.step > step or (best and entry.record.step < best.record.step):
            break
        if best is None or entry.record.step > best.record.step:  # of a step twice, the first
            best = entry
    return best


def _guess(low: int, high: int, low_step: int | None, high_step: int | None, step: int) -> int:
    """Where ``step`` should be; never so close to an end that nothing is won."""
    share = 0.5
    if low_step is not None and high_step is not None and high_step > low_step:
        share = (step - low_step) / (high_step - low_step)
    return low + int((high - low) * min(0.9, max(0.1, share)))


def _step_after(file: int, start: int, end: int) -> tuple[int, int] | None:
    """Offset and number of the first step whose line begins after ``start`` and before ``end``."""
    while (found := line_after(file, start, end)) is not None:
        at, line = found
        try:
            record = decode_line(line)
        except (BadLine, UnknownFormat):
            record = None
        if isinstance(record, StepRecord):
            return at, record.step
        start = at + len(line) - 1
    return None


def line_after(file: int, start: int, end: int, guess: int = 1 << 16) -> tuple[int, bytes] | None:
    """Offset and bytes, newline included, of the first whole line that begins after ``start``.

    ``None`` where it would begin at ``end`` or later.
    """
    want = 2 * guess
    while True:
        data = os.pread(file, want, start)
        begin = data.find(b"\n") + 1
        if begin and start + begin >= end:
            return None
        stop = data.find(b"\n", begin) + 1 if begin else 0
        if stop:
            return start + begin, data[begin:stop]
        if len(data) < want or want >= _LONGEST_LINE:
            return None
        want *= 4


@dataclass(slots=True)
class Overview:
    """Steps spread evenly over the bytes of a log, in increasing order."""

    run: RunRecord | None = None
    samples: list[StepEntry] = field(default_factory=list)
    line_bytes: int = 0
    """Length of a typical line."""
    monotonic: bool = True
    """Whether no sample went backwards: between two of them steps grow with the offset."""

    end: EventRecord | None = None
    """The event that ended the run, if it is the last record."""

    def take(self, entry: StepEntry) -> None:
        """Add one sample; removes steps that it supersedes."""
        while self.samples and self.samples[-1].record.step >= entry.record.step:
            if self.samples[-1].offset == entry.offset:
                return
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
    file = open_regular_file(path)
    try:
        size = os.fstat(file).st_size
        head = _head(file)
        reader = RunReader(name)
        entries = list(reader.feed(head[: head.rfind(b"\n") + 1]))
        steps = [entry for entry in entries if isinstance(entry, StepEntry)]
        # A header may be a hundred times longer than the steps behind it.
        overview.line_bytes = max((step.length for step in steps[:8]), default=len(head) + 1)
        for entry in steps[:4]:
            overview.take(entry)
        overview.run = reader.run
        for index in range(1, count):
            _take_line(file, name, overview, size * index // count, size)
        end: int | None = max(0, size - 3 * overview.line_bytes)
        for _ in range(_TAIL_LINES):  # on to the last whole line
            if end is not None:
                end = _take_line(file, name, overview, end, size)
    finally:
        os.close(file)
    return overview


def sample_of(lines: bytes, name: str) -> Overview:
    """The same of lines that a source sampled; their places in the log are unknown."""
    overview, reader = Overview(monotonic=False), RunReader(name)
    for entry in reader.feed(lines):
        if isinstance(entry, StepEntry):
            overview.take(entry)
    overview.run = reader.run
    return overview


def _take_line(file: int, name: str, overview: Overview, start: int, size: int) -> int | None:
    """Add the first line that begins after ``start``; returns where it ends."""
    found = line_after(file, start, size, overview.line_bytes + 32)
    if found is None:
        return None
    at, line = found
    reader = RunReader(name, overview.run, at)
    for entry in reader.feed(line):
        if isinstance(entry, StepEntry):
            overview.take(entry)
            overview.end = None
        elif isinstance(entry, EventRecord) and entry.event == "end":
            overview.end = entry
        elif isinstance(entry, RunRecord):
            overview.run = entry
    return at + len(line) - 1


def _head(file: int) -> bytes:
    """The first lines of the file; at least two, where they are not absurdly long."""
    want = _FIRST_BYTES
    while True:
        head = os.pread(file, want, 0)
        if head.count(b"\n") > 1 or len(head) < want or want >= _LONGEST_LINE:
            return head
        want *= 4
