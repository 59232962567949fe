"""Files that are written once each, and a folder in which more of them may appear.

New files are read together once none of them was written to for a moment: the ranks of a server
write theirs at about the same time. A file that changes after it was read restarts the reading.
"""

import os
import re
import stat
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from microscope_tui.runlog import safe_text
from microscope_tui.sources.exact_bytes import Bytes, opened
from microscope_tui.sources.reader import Batch, Record, RecordReader, Unreadable

SETTLED_S = 1.0
"""A file that nothing was written to for this long is complete."""
MOST_FILES = 4096
"""Files of a folder that are read; a dump has one per rank."""
_TURN_S = 0.05
_TURN_RECORDS = 512


@dataclass(frozen=True, slots=True)
class Version:
    """Identifies what a file holds without reading it."""

    inode: tuple[int, int]
    size: int
    modified_ns: int


class Late(Exception):
    """A new file belongs to what was already returned: read everything again."""


class DumpReader(RecordReader):
    """Reads records from whole files."""

    def __init__(self, path: Path, names: re.Pattern[str]) -> None:
        """``path``: a file of any name, or a folder with files whose names match ``names``."""
        super().__init__()
        self.path = path
        self._names = names
        self._versions: dict[Path, Version] = {}  # of the files that were read or are being read
        self._seen: dict[Path, tuple[Version, float]] = {}  # when a version was seen first
        self._records: Iterator[tuple[float, Record]] | None = None
        self._before = self._reading = 0  # bytes of the files before, and of these
        self._failed: Unreadable | None = None
        self._lost = False  # a read failed in the middle

    @abstractmethod
    def _start(self) -> None:
        """Forget everything that was read."""

    @abstractmethod
    def _read_files(self, paths: Sequence[Path]) -> Iterator[tuple[float, Record]]:
        """The records of new files, each with the share of the work that is done.

        Raises:
            Unreadable: a file is damaged or hostile.
            Late: one of them should have been read with the files before.
        """

    @abstractmethod
    def _waiting(self) -> Iterator[Record]:
        """Records that are held back, when no more will come."""

    def read(self, max_bytes: int = 1 << 20) -> Batch:
        """See ``RecordReader``."""
        found = self._look()
        changed = any(found.get(path, old) != old for path, old in self._versions.items())
        changed = changed or self._lost
        if changed:
            self._forget()
        if self._failed is not None:
            raise self._failed
        records: list[Record] = []
        try:
            self._next(found, records, max_bytes)
        except Unreadable as why:
            self._failed = why
            records += self._waiting()
            if not records:
                raise
        except OSError:
            self._lost = True  # what was read so far cannot be continued
            raise
        except Late:
            self._forget()
            changed, records = True, []
        unread = any(path not in self._versions for path in found)
        self.exhausted = not unread and self._records is None and self._failed is None
        return Batch(records, changed)

    def _next(self, found: dict[Path, Version], records: list[Record], max_bytes: int) -> None:
        """Append the next records."""
        if self._records is None:
            new = {path: version for path, version in found.items() if path not in self._versions}
            if not new or not all(self._is_settled(path) for path in new):
                return
            self._versions |= new
            self._reading = sum(version.size for version in new.values())
            self._records = self._read_files(list(new))
        end = time.monotonic() + _TURN_S
        until = self.offset + max_bytes
        for done, record in self._records:
            self.offset = self._before + int(done * self._reading)
            records.append(record)
            late = time.monotonic() > end or self.offset >= until
            if late or len(records) >= _TURN_RECORDS:
                return
        self._records = None
        self._before = self.offset = self._before + self._reading

    def _look(self) -> dict[Path, Version]:
        """The files that are there now, in the order of their names."""
        found = dict(sorted(self._present()))
        now = time.monotonic()
        self._seen = {
            path: old if (old := self._seen.get(path)) and old[0] == version else (version, now)
            for path, version in found.items()
        }
        self.size = sum(version.size for version in found.values())
        if found:
            self.modified = max(version.modified_ns for version in found.values()) / 1e9
        self.deleted = not found and bool(self._versions)
        return found

    def _present(self) -> Iterator[tuple[Path, Version]]:
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(status.st_mode):
            yield self.path, _version(status)
            return
        number = 0
        with os.scandir(self.path) as entries:
            for entry in entries:
                if self._names.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    number += 1
                    if number > MOST_FILES:
                        raise Unreadable(
                            f"{safe_text(self.path.name)}: more than {MOST_FILES:,} files; move "
                            "older ones away"
                        )
                    yield self.path / entry.name, _version(entry.stat(follow_symlinks=False))

    def _is_settled(self, path: Path) -> bool:
        version, since = self._seen[path]
        age = time.time() - version.modified_ns / 1e9
        return max(age, time.monotonic() - since) >= SETTLED_S

    def _forget(self) -> None:
        self._versions, self._records, self._failed, self._lost = {}, None, None, False
        self._before = self._reading = self.offset = 0
        self._start()

    def _check_unchanged(self, data: Bytes, path: Path) -> None:
        """Raise ``OSError`` if a file is not the one that was found; the next read restarts."""
        if _version(os.fstat(data.file)) != self._versions.get(path):
            raise OSError(f"{data.name} changed while it was read")


def begins_with(path: Path, most: int = 1 << 16) -> bytes:
    """The first bytes of a file; none if there is no such regular file.

    Raises:
        OSError: it cannot be read.
    """
    if not path.is_file():
        return b""
    with opened(path) as data:
        return data.read(0, min(most, data.size), "the beginning")


def candidates(path: Path, names: re.Pattern[str], most: int = 8) -> list[Path]:
    """The file itself, or the first files in a folder whose names match."""
    if not path.is_dir():
        return [path]
    with os.scandir(path) as entries:
        found = [
            entry.name
            for entry in entries
            if names.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
        ]
    return [path / name for name in sorted(found)[:most]]


def _version(status: os.stat_result) -> Version:
    return Version((status.st_dev, status.st_ino), status.st_size, status.st_mtime_ns)
