"""Runs of TensorBoard: a folder of event files, or one of them.

A folder is one run. A trainer that resumes starts another file, and several writers may share a
folder, so the rows of all files are merged by their time: files that follow each other are read one
after the other, files that were written at once side by side. Subfolders are other runs:
``SummaryWriter.add_scalars`` makes one for each of its numbers. The tensorboard package is not
used: it brings numpy and a web server.
"""

import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from microscope_tui.runlog import safe_text
from microscope_tui.sources.growing import GrowingFile, coarse_to_fine, read_head
from microscope_tui.sources.keys import Keys
from microscope_tui.sources.reader import Row, RowReader, Rows, Unreadable
from microscope_tui.sources.tensorboard_events import EventRows, is_first_event
from microscope_tui.sources.tfrecord import (
    HEADER_BYTES,
    RecordSplitter,
    find_record,
    length_of,
)

NAMES = re.compile(r"events\.out\.tfevents\..+", re.DOTALL)
MAX_FILES = 256
"""Event files of one run that are followed, the oldest first."""
MAX_ENTRIES = 10_000
"""Names in a folder that are looked at."""
MAX_SAMPLED_BYTES = 32 << 20
"""What ``sample`` reads at most: about a second."""
_LEAST_OF_A_FILE = 16 * 1024
_SAMPLED_AT_ONCE = 16 * 1024  # a place needs three steps: the first is torn, the third ends it
_RECOGNISED_BY = 4096  # the first event has 40 bytes
_TIME = re.compile(r"tfevents\.(\d{1,18})")


def recognises(path: Path) -> bool:
    """Whether it is an event file, or a folder with at least one.

    Raises:
        OSError: it cannot be read.
    """
    if path.is_dir():
        return any(map(_is_event_file, _event_files(path)[:16]))
    return path.is_file() and _is_event_file(path)


class TensorBoardReader(RowReader):
    """The rows of one run, as they are logged."""

    def __init__(self, path: Path, keys: Keys) -> None:
        """``path``: a folder of event files, or an event file."""
        super().__init__(keys)
        self._path = path
        self._start([])

    def _start(self, paths: Iterable[Path]) -> None:
        self._decoder = EventRows(self.keys)
        self._files = {path: _EventFile(path, self._decoder) for path in paths}
        self.config = self._decoder.config

    def read(self, max_bytes: int = 1 << 20) -> Rows:
        """See ``RowReader``."""
        self._look()
        files = list(self._files.values())
        starved = [file for file in files if not file.rows]
        for file in starved:
            file.fill(max(_LEAST_OF_A_FILE, max_bytes // len(starved)))
        restarted = any(file.restarted for file in files)
        if restarted:
            self._start(self._files)
            self.exhausted = False
            return Rows((), restarted=True)
        rows = list(_by_time(files))
        self.offset = sum(file.bytes.offset for file in files)
        self.size = sum(file.bytes.size for file in files)
        times = [file.bytes.modified for file in files if file.bytes.modified is not None]
        self.modified = max(times, default=self.modified)
        self.exhausted = not any(file.rows or file.may_have_more for file in files)
        damage = next((file.damage for file in files if file.damage is not None), None)
        if damage is not None and not rows and self.exhausted:
            raise damage
        return Rows(rows)

    def sample(self, count: int) -> list[Row]:
        """Rows of about ``count`` places in all files together; the rest is not read.

        A place gives the first step that begins there. Where steps are so large that
        ``MAX_SAMPLED_BYTES`` are not enough, it has the numbers that come first in the step.

        Raises:
            OSError: a file cannot be read.
        """
        self._look()
        files = list(self._files.values())
        for file in files:
            file.bytes.pread(0, 0)
        size = sum(file.bytes.size for file in files)
        most = max(_SAMPLED_AT_ONCE, MAX_SAMPLED_BYTES // max(1, count))
        rows: dict[tuple[int, int], Row] = {}
        for place in coarse_to_fine(max(1, count)):
            at = int(place * size)
            for index, file in enumerate(files):
                if at < file.bytes.size:
                    row = file.first_step(at, most)
                    if row is not None:
                        rows[index, row.step] = row
                    break
                at -= file.bytes.size
        return [rows[place] for place in sorted(rows)]

    def _look(self) -> None:
        """Find files that are new, or gone."""
        if self._path.is_dir():
            found = _event_files(self._path)[:MAX_FILES]
        else:
            found = [self._path] if self._path.exists() else []
        self.deleted = bool(self._files) and not found
        if found:
            self._files = {
                path: self._files.get(path) or _EventFile(path, self._decoder) for path in found
            }


class _EventFile:
    """One event file, and its rows that are not handed out yet."""

    def __init__(self, path: Path, decoder: EventRows) -> None:
        self.bytes = GrowingFile(path)
        self.rows: deque[Row] = deque()
        self.damage: Unreadable | None = None
        self.restarted = False
        self._decoder = decoder
        self._splitter = RecordSplitter()

    @property
    def may_have_more(self) -> bool:
        """Whether bytes are left that can be read now."""
        return self.damage is None and not self.bytes.exhausted

    def fill(self, max_bytes: int) -> None:
        """Decode the next bytes."""
        data, self.restarted = self.bytes.read(max_bytes)
        if self.damage is not None or self.restarted:
            return
        rows, why = self._decoder.rows(self._splitter.feed(data))
        self.rows += rows
        self.damage = self._splitter.damage
        if why is not None:
            self.damage = Unreadable(
                f"an event of {safe_text(self.bytes.path.name)} before byte {self.bytes.offset:,} "
                f"cannot be decoded ({why}): copy the file again. What comes before is shown"
            )

    def first_step(self, at: int, most: int) -> Row | None:
        """The first matching step that begins at ``at`` or later, of ``most`` bytes.

        The first one with a reading of a router, if there is one.
        """
        splitter: RecordSplitter | None = None
        rows: list[Row] = []
        for offset in range(at, at + most, _SAMPLED_AT_ONCE):
            data = self.bytes.pread(_SAMPLED_AT_ONCE, offset)
            if splitter is None:
                start = 0 if at == 0 else find_record(data)
                if start is None:
                    continue
                data, splitter = data[start:], RecordSplitter(offset + start)
            found, why = self._decoder.rows(splitter.feed(data))
            if rows and found and rows[-1].step == found[0].step:
                rows[-1].values += found.pop(0).values
            rows += found
            ended = why is not None or offset + _SAMPLED_AT_ONCE >= self.bytes.size
            if ended or any(row.of_router for row in rows[1:-1]):  # the last may not be complete
                break
        if at > 0 and len(rows) > 1:
            rows = rows[1:]  # the first may have begun before ``at``
        return next((row for row in rows if row.of_router), rows[0] if rows else None)


def _by_time(files: list[_EventFile]) -> Iterator[Row]:
    """The rows of all files in the order of their times, as far as that order is known."""
    while any(file.rows for file in files):
        if any(not file.rows and file.may_have_more for file in files):
            return  # the next of this file may come first
        first = min((file for file in files if file.rows), key=lambda file: file.rows[0].time or 0)
        yield first.rows.popleft()


def _event_files(folder: Path) -> list[Path]:
    """The event files of a folder, in the order of the times in their names; no links."""
    found: list[tuple[int, str]] = []
    with os.scandir(folder) as entries:
        for entry, _ in zip(entries, range(MAX_ENTRIES), strict=False):
            if NAMES.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                time = _TIME.search(entry.name)
                found.append((int(time[1]) if time else 0, entry.name))
    return [folder / name for _, name in sorted(found)]


def _is_event_file(path: Path) -> bool:
    head = read_head(path, _RECOGNISED_BY)
    if len(head) < HEADER_BYTES:
        return False
    length = length_of(head[:HEADER_BYTES])
    return length is not None and is_first_event(head[HEADER_BYTES : HEADER_BYTES + length])
