"""Find one step in a log without reading the log: steps grow with the byte offset.

``read_steps`` reads on from a known line; ``find_step`` narrows a stretch of the file, in which
steps are known to grow, by interpolation until a single read covers what is left;
``surviving_steps`` reads a stretch with restarts in it.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from microscope_tui.runlog.decode import decode_line
from microscope_tui.runlog.reader import Entry, RunReader, StepEntry
from microscope_tui.runlog.records import BadLine, RunRecord, StepRecord, UnknownFormat
from microscope_tui.runlog.tail import open_regular_file

_READ_BYTES = 1 << 19
_NEAR_BYTES = 1 << 20
_LONGEST_LINE = 8 << 20
_MOST_PROBES = 40


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
