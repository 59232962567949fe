"""Follow a growing log: new bytes only, whole lines only.

``LineSplitter`` is the pure half: whatever the cuts in the byte stream, the same lines come out.
``LogFollower`` is the half with the file: it remembers where the last complete line ended, and
what the bytes before it looked like, so that it notices when the file under the name was
truncated, rewritten, replaced or removed. ``Source`` is what every origin of a log offers.
"""

import errno
import json
import os
import stat
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from microscope_tui.runlog.spool import Spool

if TYPE_CHECKING:
    from microscope_tui.runlog.reader import Defects

MAX_LINE_BYTES = 64 * 1024 * 1024
QUIET_S = 2.0
"""A file unchanged for this long is considered at rest."""
EVERYTHING = (0, sys.maxsize)
_FINGERPRINT_BYTES = 256
_SCAN_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class LineSplitter:
    """Splits a byte stream into numbered lines; keeps an incomplete line for the next chunk.

    NUL bytes at the start of a line are the hole that a crash left in the file, and a byte order
    mark at the start of the file is a habit of some editors: neither belongs to the line.
    """

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self.line_number = 0
        self.line_start = 0
        """Byte offset in the stream of the line that ``feed`` yielded last."""
        self.overlong: list[int] = []
        """Numbers of the lines that were longer than ``max_line_bytes`` and skipped."""
        self._max = max_line_bytes
        self._parts: list[bytes] = []
        self._size = 0
        self._fed = 0  # bytes before the present chunk
        self._next_start = 0

    def feed(self, chunk: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield ``(line number from 1, line without its newline)`` for every line completed."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self.line_number += 1
            self._keep(chunk[start:end])
            start = end + 1
            self.line_start, self._next_start = self._next_start, self._fed + start
            line, size = b"".join(self._parts), self._size
            self._parts, self._size = [], 0
            if size > self._max:
                self.overlong.append(self.line_number)
            else:
                first = self.line_number == 1
                yield self.line_number, line.removeprefix(_BYTE_ORDER_MARK) if first else line
        self._keep(chunk[start:])
        self._fed += len(chunk)

    def _keep(self, part: bytes) -> None:
        if self._size == 0:
            part = part.lstrip(b"\0")  # in pieces: a hole may be larger than the memory
        self._size += len(part)
        if self._size > self._max:
            self._parts = []  # an endless line must not fill the memory
        elif part:
            self._parts.append(part)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Result of one poll: bytes, and whether they belong to a new file."""

    data: bytes
    restarted: bool = False
    """The log was truncated or replaced: everything read before is gone."""


class Source(ABC):
    """A source of log bytes: a file, a compressed file, a pipe."""

    def __init__(self, path: Path, *, seekable: bool) -> None:

        self.path = path
        """The path of the file, or a display name for other sources."""
        self.offset = 0
        """How far it was read; in the same bytes as ``size``, so that their ratio is the progress.

        Everything before it was handed out.
        """
        self.size = 0
        self.modified: float | None = None
        """Time of the last change, by the file system's clock; ``None`` while there is no file."""
        self.changed_at: float | None = None
        """When we last saw it change, by the monotonic clock; ``None`` before the first time."""
        self.deleted = False
        self.exhausted = False
        """Whether no complete line was left at the last poll."""
        self.spool: Spool | None = None
        """Where its lines are kept, if they cannot be read again at their origin."""
        self.seekable = seekable
        """Whether ``path`` can be read at any offset in ``kept``."""
        self.defects: Defects | None = None
        """What was skipped before it became lines, if this source translates."""

    def wait_s(self) -> float:
        """Seconds until another ``read`` may give anything."""
        return 0.0

    def sampled(self, count: int) -> bytes:
        """Lines of about ``count`` steps of the whole run, without reading all of it.

        Empty where the source offers none, or where ``path`` can be sampled itself.

        Raises:
            OSError: it cannot be read.
        """
        return b""

    @abstractmethod
    def kept(self) -> tuple[int, int]:
        """Range of bytes that can be read again; ``EVERYTHING`` for all."""

    @abstractmethod
    def read(self, max_bytes: int = 1 << 20) -> Chunk:
        """New data, about ``max_bytes`` of it; never waits for a writer.

        Raises:
            OSError: it is there but cannot be read; a later read may succeed.
        """


class LogFollower(Source):
    """Reads what was appended to ``path`` since the last poll, up to the last complete line."""

    def __init__(self, path: Path, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        super().__init__(path, seekable=True)
        self._max_line_bytes = max_line_bytes
        self._inode: tuple[int, int] | None = None
        # First and last bytes of what was returned: while they are unchanged in place, the
        # file is the one that was read.
        self._head = self._tail = b""
        self._newline_owed = False  # the line before ``offset`` was returned before its newline
        self._inside_overlong = False  # ``offset`` is within a line that is returned in pieces
        self._version: tuple[int, int] | None = None  # size and time of the last change
        self._version_since = 0.0
        self._fruitless: object = None  # the poll that found only a long torn line

    def kept(self) -> tuple[int, int]:
        """See ``Source``."""
        return EVERYTHING

    def relocate(self, path: Path) -> None:
        """Continue under another name after a rename. A different file restarts the reading."""
        self.path = path

    def read(self, max_bytes: int = 1 << 20) -> Chunk:
        """The next whole lines: at most ``max_bytes``, or one line that is longer.

        A torn last line stays in the file until it is complete, so that a writer may cut it off.
        In a file at rest it is handed out if it is a whole record that lacks only its newline,
        with the newline, which ``offset`` does not count and which is never handed out again.
        Only a line that no reader keeps (above ``max_line_bytes``) comes in pieces.
        """
        try:
            file = open_regular_file(self.path)
        except FileNotFoundError:
            self.deleted, self.exhausted = self._inode is not None, True
            return Chunk(b"")
        try:
            restarted = self._look(file)
            return Chunk(self._next_lines(file, max_bytes), restarted)
        finally:
            os.close(file)

    def _look(self, file: int) -> bool:
        """Update the state of the file; true if it is a different file."""
        status = os.fstat(file)
        inode = (status.st_dev, status.st_ino)
        version = (status.st_size, status.st_mtime_ns)
        restarted = self.offset > 0 and (inode != self._inode or not self._is_the_same(file))
        if restarted:
            self.offset, self._head, self._tail = 0, b"", b""
            self._newline_owed = self._inside_overlong = False
        if version != self._version or inode != self._inode:
            if self._version is not None:
                self.changed_at = time.monotonic()
            self._version, self._version_since = version, time.monotonic()
            self._fruitless = None
        self._inode, self.deleted = inode, False
        self.size, self.modified = status.st_size, status.st_mtime
        return restarted

    def _is_the_same(self, file: int) -> bool:
        """Whether what was returned is still there (in a truncated file it is not)."""
        before = self.offset - len(self._tail)
        tail = os.pread(file, len(self._tail) + 1, before)
        if os.pread(file, len(self._head), 0) != self._head or not tail.startswith(self._tail):
            return False
        if self._newline_owed and len(tail) > len(self._tail):
            if not tail.endswith(b"\n"):
                return False  # the returned line grew into another one
            self._move_on(b"\n")
            self._newline_owed = False
        return True

    def _next_lines(self, file: int, max_bytes: int) -> bytes:
        at_rest = self._at_rest()
        look = (self.offset, self._version, at_rest)
        if self._fruitless == look:
            return b""
        data = os.pread(file, max_bytes, self.offset)
        if len(data) == max_bytes and b"\n" not in data and not self._inside_overlong:
            length = self._line_length(file, len(data))
            self._inside_overlong = length > self._max_line_bytes
            if not self._inside_overlong:
                data = os.pread(file, length, self.offset)
        self.exhausted = self.offset + len(data) >= self.size
        end = data.rfind(b"\n") + 1
        rest = data[end:]
        self._inside_overlong = self._inside_overlong and not end
        if self._inside_overlong:
            end = len(data)
        elif self.exhausted and at_rest and is_an_object(rest):
            self._move_on(data)
            self._newline_owed = True
            return data + b"\n"
        self._fruitless = look if len(rest) > _SCAN_BYTES and not end else None
        whole = data[:end] if rest else data
        self._move_on(whole)
        return whole

    def _line_length(self, file: int, length: int) -> int:
        """Bytes of the line at ``offset``, of which ``length`` are known to hold no newline.

        The scan keeps nothing: a long line costs memory only once it is whole.
        """
        while length <= self._max_line_bytes:
            piece = os.pread(file, _SCAN_BYTES, self.offset + length)
            if not piece:
                return length
            if (end := piece.find(b"\n")) >= 0:
                return length + end + 1
            length += len(piece)
        return length

    def _at_rest(self) -> bool:
        """Whether the file is at rest, by the file system's clock or by our own."""
        age = time.time() - (self.modified or 0.0)
        return max(age, time.monotonic() - self._version_since) >= QUIET_S

    def _move_on(self, data: bytes) -> None:
        self.offset += len(data)
        if len(self._head) < _FINGERPRINT_BYTES:
            self._head = (self._head + data[:_FINGERPRINT_BYTES])[:_FINGERPRINT_BYTES]
        self._tail = (self._tail + data[-_FINGERPRINT_BYTES:])[-_FINGERPRINT_BYTES:]


def open_regular_file(path: Path) -> int:
    """Open ``path`` for reading; never blocks on a pipe or a device.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "not a regular file")
    return file


def is_an_object(line: bytes) -> bool:
    """The line is one whole JSON object, though its newline is missing."""
    if not line.rstrip().endswith(b"}"):
        return False
    line = line.lstrip(b"\0")
    try:
        return isinstance(msgspec.json.decode(line), dict)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass  # bare NaN and a stray byte in a text are records too: ask the standard library
    try:
        return isinstance(json.loads(line.decode("utf-8", "replace")), dict)
    except (ValueError, RecursionError):
        return False
