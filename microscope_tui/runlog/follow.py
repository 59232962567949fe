"""Follow a growing log: new bytes only, whole lines only.

``LineSplitter`` is the pure half: whatever the cuts in the byte stream, the same lines come out.
``LogFollower`` is the half with the file: it remembers where the last complete line ended, and
notices when the file under the name was truncated, replaced or removed.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_LINE_BYTES = 64 * 1024 * 1024
_FINGERPRINT_BYTES = 256


class LineSplitter:
    """Cuts a byte stream into numbered lines; keeps the torn rest for the next chunk."""

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self.line_number = 0
        self.overlong: list[int] = []
        """Numbers of the lines that were longer than ``max_line_bytes`` and skipped."""
        self._max = max_line_bytes
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield ``(line number from 1, line without its newline)`` for every line completed."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self.line_number += 1
            self._keep(chunk[start:end])
            start = end + 1
            line, size = b"".join(self._parts), self._size
            self._parts, self._size = [], 0
            if size > self._max:
                self.overlong.append(self.line_number)
            else:
                yield self.line_number, line
        self._keep(chunk[start:])

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._max:
            self._parts = []  # an endless line must not fill the memory
        elif part:
            self._parts.append(part)


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one look at the file brought: bytes, and whether they belong to a new file."""

    data: bytes
    restarted: bool = False
    """The file was truncated or replaced: everything read before no longer stands in it."""


class LogFollower:
    """Reads what was appended to ``path`` since the last look, up to the last whole line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        """Everything before it was handed out; it stands at a line end (see ``read``)."""
        self.size = 0
        self.modified: float | None = None
        """Time of the last change, by the file system's clock; ``None`` while there is no file."""
        self.deleted = False
        self.exhausted = False
        """Nothing but a torn last line is left of what the file held at the last look."""
        self._inode: tuple[int, int] | None = None
        self._head = b""

    def read(self, max_bytes: int = 1 << 20) -> Chunk:
        """The next whole lines, at most ``max_bytes``; empty when nothing is new.

        A torn last line stays in the file until it is complete, so that a writer may cut it off.
        Only a line longer than ``max_bytes`` is handed out in pieces.

        Raises:
            OSError: the file is there but cannot be read (permissions, a folder, I/O error).
        """
        try:
            with self.path.open("rb", buffering=0) as file:
                restarted = self._look(file.fileno())
                data = os.pread(file.fileno(), max_bytes, self.offset)
        except FileNotFoundError:
            self.deleted, self.exhausted = self._inode is not None, True
            return Chunk(b"")
        self.exhausted = self.offset + len(data) >= self.size
        if len(data) < max_bytes or b"\n" in data:
            data = data[: data.rfind(b"\n") + 1]
        self.offset += len(data)
        return Chunk(data, restarted)

    def _look(self, file: int) -> bool:
        """Update what is known of the file; true if it is not the one we were reading."""
        status = os.fstat(file)
        inode = (status.st_dev, status.st_ino)
        head = os.pread(file, _FINGERPRINT_BYTES, 0)
        restarted = self._inode is not None and (
            inode != self._inode or status.st_size < self.offset or not head.startswith(self._head)
        )
        if restarted:
            self.offset, self._head = 0, b""
        self._inode, self.deleted = inode, False
        self.size, self.modified = status.st_size, status.st_mtime
        # Only whole lines identify a file: its torn first line may still change.
        self._head = head[: head.rfind(b"\n") + 1] or (
            head if len(head) == _FINGERPRINT_BYTES else b""
        )
        return restarted
