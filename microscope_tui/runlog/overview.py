"""The file is its own index: steps grow with the byte offset.

A first picture of a whole history costs as many small reads as the screen has columns, whatever
the size of the file: seek, skip to the next newline, decode that record without its matrices.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from microscope_tui.runlog.reader import RunReader, StepEntry
from microscope_tui.runlog.records import EventRecord, RunRecord
from microscope_tui.runlog.seek import line_after
from microscope_tui.runlog.tail import open_regular_file

_HEAD_BYTES = 1 << 16
_LONGEST_HEAD = 8 << 20
_TAIL_LINES = 64


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
    want = _HEAD_BYTES
    while True:
        head = os.pread(file, want, 0)
        if head.count(b"\n") > 1 or len(head) < want or want >= _LONGEST_HEAD:
            return head
        want *= 4
