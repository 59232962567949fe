"""The bytes of a binary file that may still grow, each once.

Like ``runlog.follow.LogFollower``, but without lines: whoever takes the bytes keeps what is torn.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from microscope_tui.runlog import open_regular_file

_FINGERPRINT_BYTES = 256


class GrowingFile:
    """Reads what was appended to ``path``, and notices that it was truncated or replaced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        """Everything before it was handed out."""
        self.size = 0
        self.modified: float | None = None
        self.deleted = False
        self._inode: tuple[int, int] | None = None
        self._head = self._tail = b""  # of what was handed out: unchanged in the same file

    @property
    def exhausted(self) -> bool:
        """Whether nothing was left at the last ``read``."""
        return self.offset >= self.size

    def read(self, max_bytes: int) -> tuple[bytes, bool]:
        """The next bytes, and whether they are from the start of a different file.

        Raises:
            OSError: it is there but cannot be read.
        """
        try:
            file = open_regular_file(self.path)
        except FileNotFoundError:
            self.deleted, self.size = self._inode is not None, self.offset
            return b"", False
        try:
            restarted = self._look(file)
            data = os.pread(file, max_bytes, self.offset)
        finally:
            os.close(file)
        self._move_on(data)
        return data, restarted

    def pread(self, length: int, offset: int) -> bytes:
        """Bytes at any place; what was handed out does not change.

        Raises:
            OSError: it cannot be read.
        """
        file = open_regular_file(self.path)
        try:
            self.size = os.fstat(file).st_size
            return os.pread(file, length, offset)
        finally:
            os.close(file)

    def _look(self, file: int) -> bool:
        status = os.fstat(file)
        inode = (status.st_dev, status.st_ino)
        restarted = self.offset > 0 and (inode != self._inode or not self._is_the_same(file))
        if restarted:
            self.offset, self._head, self._tail = 0, b"", b""
        self._inode, self.deleted = inode, False
        self.size, self.modified = status.st_size, status.st_mtime
        return restarted

    def _is_the_same(self, file: int) -> bool:
        before = self.offset - len(self._tail)
        return (
            os.pread(file, len(self._head), 0) == self._head
            and os.pread(file, len(self._tail), before) == self._tail
        )

    def _move_on(self, data: bytes) -> None:
        self.offset += len(data)
        self.size = max(self.size, self.offset)  # it grew since we looked
        missing = _FINGERPRINT_BYTES - len(self._head)
        self._head += data[:missing] if missing > 0 else b""
        self._tail = (self._tail + data[-_FINGERPRINT_BYTES:])[-_FINGERPRINT_BYTES:]


def read_head(path: Path, length: int) -> bytes:
    """The first bytes of a regular file.

    Raises:
        OSError: it cannot be read.
    """
    file = open_regular_file(path)
    try:
        return os.pread(file, length, 0)
    finally:
        os.close(file)


def coarse_to_fine(count: int) -> Iterator[float]:
    """``count`` evenly spaced places in [0, 1), so that the first few of them are spread too."""
    bits = (count - 1).bit_length()
    for i in range(1 << bits):
        place = int(f"{i:0{bits}b}"[::-1] or "0", 2) if bits else 0
        if place < count:
            yield place / count
