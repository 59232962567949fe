"""The file is its own index: steps grow with the byte offset.

A first picture of a whole history costs as many small reads as the screen has columns, whatever
the size of the file: seek, skip to the next newline, decode that record without its matrices.
"""

import os
from pathlib import Path

from microscope_tui.runlog.reader import RunReader, StepEntry

_HEAD_BYTES = 1 << 16
_MAX_SAMPLE_BYTES = 8 << 20


def sample(path: Path, name: str, count: int) -> tuple[RunReader, list[StepEntry]]:
    """About ``count`` steps spread evenly over the bytes of ``path``, in increasing order.

    Returns the reader too: it holds the header. A sample that is torn, is no step, or does not
    increase (a restart in the file) is left out; the full scan sorts that out later.

    Raises:
        OSError: the file cannot be read.
        UnknownFormat: the log has another format version.
    """
    reader = RunReader(name)
    samples: list[StepEntry] = []
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        head = os.pread(file.fileno(), _HEAD_BYTES, 0)
        entries = list(reader.feed(head[: head.rfind(b"\n") + 1]))
        samples.extend(entry for entry in entries[:4] if isinstance(entry, StepEntry))
        length = _typical_line(head)
        for index in range(1, count + 1):
            # The last sample is the last whole line; the others start after their offset.
            start = max(0, size * index // count - (2 * length if index == count else 0))
            line = _line_after(file.fileno(), start, size, length)
            if line is None:
                continue
            for entry in reader.feed(line):
                last = samples[-1].record.step if samples else -1
                if isinstance(entry, StepEntry) and entry.record.step > last:
                    samples.append(entry)
    return reader, samples


def _typical_line(head: bytes) -> int:
    lines = head.split(b"\n")
    return max(len(line) for line in lines[:-1] or lines) + 1


def _line_after(file: int, start: int, size: int, length: int) -> bytes | None:
    """The first whole line that begins after ``start``, newline included."""
    want = 2 * length + 64
    while True:
        data = os.pread(file, want, start)
        begin = data.find(b"\n") + 1
        end = data.find(b"\n", begin) + 1 if begin else 0
        if end:
            return data[begin:end]
        if start + want >= size or want >= _MAX_SAMPLE_BYTES:
            return None
        want *= 4
