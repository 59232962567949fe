"""Follow a growing file: new bytes only, and whole lines where it has lines.

``Tail`` remembers how far it read and what the bytes before that looked like, so it notices when
the file under the name was truncated, rewritten, replaced or removed. ``LineSplitter`` is the pure
half: whatever the cuts in the byte stream, the same lines come out.
"""

import errno
import hashlib
import os
import stat
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from microscope_tui.runlog.decode import object_of
from microscope_tui.runlog.records import BadLine

MAX_LINE_BYTES = 64 * 1024 * 1024
QUIET_S = 2.0
"""A file unchanged for this long is considered at rest."""
EVERYTHING = (0, sys.maxsize)
_FINGERPRINT_BYTES = 256
_SCAN_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Defects(msgspec.Struct):
    """Unreadable records: their number, and the first three in words."""

    count: int = 0
    first: list[str] = msgspec.field(default_factory=list)

    def add(self, line_number: int, reason: str) -> None:
        """Count a line that was skipped; the reasons of the first three are kept."""
        self.count += 1
        if len(self.first) < 3:
            self.first.append(f"line {line_number:,}: {reason}")

    def merge(self, other: "Defects") -> None:
        """Add the defects of another file behind these."""
        self.count += other.count
        self.first = [*self.first, *other.first][:3]


class LineSplitter:
    """Splits a byte stream into numbered lines; keeps an incomplete line for the next chunk.

    NUL bytes at the start of a line are the hole that a crash left in the file, and a byte order
    mark at the start of the file is a habit of some editors: neither belongs to the line.
    """

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES, start: int = 0) -> None:
        """``start``: byte offset of the first line in the log."""
        self.line_number = 0
        self.line_start = start
        """Byte offset of the line that ``feed`` yielded last."""
        self.overlong: list[int] = []
        """Numbers of the lines that were longer than ``max_line_bytes`` and skipped."""
        self._max = max_line_bytes
        self._parts: list[bytes] = []
        self._size = 0
        self._fed = self._next_start = start  # offset of the present chunk, and of the next line

    def feed(self, chunk: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield ``(line number from 1, line without its newline)`` for every line completed."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self.line_number += 1
            self._keep(chunk[start:end])
            start = end + 1
            self.line_start, self._next_start = self._next_start, self._fed + start
            line, size = b"".join(self._parts), self._size
            self._parts = []
            self._size = 0
            if size > self._max:
                self.overlong.append(self.line_number)
            else:
                if self.line_number == 1:
                    line = line.removeprefix(_BYTE_ORDER_MARK)
                yield self.line_number, line
        self._keep(chunk[start:])
        self._fed += len(chunk)

    def report(self, defects: Defects) -> None:
        """Move the lines that were too long, and were left out, to ``defects``."""
        for number in self.overlong:
            defects.add(number, f"longer than {self._max >> 20} MB, skipped")
        self.overlong = []

    def _keep(self, part: bytes) -> None:
        if self._size == 0:
            part = part.lstrip(b"\0")  # in pieces: a hole may be larger than the memory
        self._size += len(part)
        if self._size > self._max:
            self._parts = []  # an endless line must not fill the memory
        elif part:
            self._parts.append(part)


class Chunk(msgspec.Struct, frozen=True):
    """What one read of a source gave."""

    data: bytes
    restarted: bool = False
    """The file was truncated or replaced: everything read before is gone."""
    lines: list[tuple[int, bytes]] = msgspec.field(default_factory=list)
    """Of ``Tail.read_lines``: line number from 1, and the line without its newline."""


class Progress:
    """How far a source was read, and what the user should know about it."""

    def __init__(self) -> None:
        self.offset = 0
        """All before it was handed out; in the same bytes as ``size``."""
        self.size = 0
        self.modified: float | None = None
        """Time of the last change, by the file system's clock; ``None`` while there is no file."""
        self.deleted = False
        self.exhausted = False
        """Whether nothing complete was left at the last read."""
        self.defects = Defects()
        """What could not be read and was skipped, before records were made of it."""
        self.missing = ""
        """What another tool's run holds instead of readings of routers, and what to do."""
        self.parts = ""
        """How many parts of a run have come how far, if not all have."""
        self.withheld = ""
        """Why no verdict can be given, even if there are findings."""
        self.busy_since: float | None = None
        """Unix seconds, while its writer lets nothing be read; what was read stays."""

    def wait_s(self) -> float:
        """Seconds until another read may give anything."""
        return 0.0

    def report(self, *parts: "Progress") -> None:
        """Take over the progress of the files that this is read from; defects stay."""
        self.offset = sum(part.offset for part in parts)
        self.size = sum(part.size for part in parts)
        known = [part.modified for part in parts if part.modified is not None]
        self.modified = max(known, default=self.modified)
        self.deleted = bool(parts) and all(part.deleted for part in parts)
        self.exhausted = all(part.exhausted for part in parts)


class Source(Progress, ABC):
    """A source of log bytes: a file, a compressed file, a pipe, another tool's run."""

    def __init__(self, path: Path, *, seekable: bool) -> None:
        super().__init__()
        self.path = path
        """The path of the file, or a display name for other sources."""
        self.changed_at: float | None = None
        """When we last saw it change, by the monotonic clock; ``None`` before the first time."""
        self.seekable = seekable
        """``path`` can be read at any offset in ``kept``."""
        self.translates = False
        """It makes lines of another format, so that its own ``defects`` count."""

    def sampled(self, count: int) -> bytes:
        """Lines of about ``count`` steps of the whole run, without reading all of it.

        Empty where the source offers none, or where ``path`` can be sampled itself. ``OSError``:
        it cannot be read.
        """
        return b""

    @abstractmethod
    def kept(self) -> tuple[int, int]:
        """First and last offset of the bytes that can be read again; ``EVERYTHING`` for all."""

    @abstractmethod
    def read(self, max_bytes: int = 1 << 20) -> Chunk:
        """New data, about ``max_bytes`` of it; never waits for a writer.

        Raises:
            OSError: it is there but cannot be read; a later read may succeed.
        """


class Tail(Source):
    """Reads what was appended to ``path`` since the last read, up to the last complete line."""

    def __init__(self, path: Path, max_line_bytes: int | None = MAX_LINE_BYTES) -> None:
        """``max_line_bytes``: ``None`` for a file without lines, of which all bytes are new."""
        super().__init__(path, seekable=True)
        self._max_line_bytes = max_line_bytes
        self._stamp: Stamp | None = None
        self._stamp_since = 0.0
        self._fruitless: object = None  # the read that found only a long torn line
        self._reset()

    def _reset(self) -> None:
        self.offset = 0
        self.defects = Defects()
        self._restarted = True
        # First and last bytes of what was returned: while they are unchanged in place, the
        # file is the one that was read.
        self._head = self._tail = b""
        self._newline_owed = False  # the line before ``offset`` was returned before its newline
        self._inside_overlong = False  # ``offset`` is within a line that is returned in pieces
        self._splitter = LineSplitter(self._max_line_bytes or 0)

    def kept(self) -> tuple[int, int]:
        return EVERYTHING

    def read_lines(self, max_bytes: int = 1 << 20) -> Chunk:
        """The next complete lines; those above the limit are left out and count as defects.

        Use either this or ``read``. ``OSError``: as ``read``.
        """
        chunk = self.read(max_bytes)
        lines = list(self._splitter.feed(chunk.data))
        self._splitter.report(self.defects)
        return replace(chunk, lines=lines)

    def read(self, max_bytes: int = 1 << 20) -> Chunk:
        """The next whole lines: at most ``max_bytes``, or one line that is longer.

        A torn last line stays in the file until it is complete, so that a writer may cut it off.
        In a file at rest it is handed out if it is a whole record that lacks only its newline,
        with the newline, which ``offset`` does not count and which is never handed out again.
        Only a line that no reader keeps (above ``max_line_bytes``) comes in pieces.
        """
        try:
            with opened(self.path) as file:
                self._restarted = False
                self._look(file)
                return Chunk(self._next(file, max_bytes), self._restarted)
        except FileNotFoundError:
            self.deleted = self._stamp is not None or self.size > 0  # it was sampled
            self.exhausted = True
            return Chunk(b"")

    def pread(self, length: int, offset: int) -> bytes:
        """Bytes at any place; also updates ``size``, but nothing counts as read.

        ``OSError``: it cannot be read.
        """
        with opened(self.path) as file:
            self.size = os.fstat(file).st_size
            return os.pread(file, length, offset)

    def _look(self, file: int) -> None:
        """Start again if it is a different file."""
        status = os.fstat(file)
        stamp, before = stamp_of(status), self._stamp
        if self.offset > 0 and (
            before is None or stamp[:2] != before[:2] or not self._is_the_same(file)
        ):
            self._reset()
        if stamp != before:
            if before is not None:
                self.changed_at = time.monotonic()
            self._stamp = stamp
            self._stamp_since = time.monotonic()
            self._fruitless = None
        self.deleted = False
        self.size, self.modified = status.st_size, status.st_mtime

    def _is_the_same(self, file: int) -> bool:
        """Whether what was returned is still there."""
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

    def _next(self, file: int, max_bytes: int) -> bytes:
        if self._max_line_bytes is not None:
            return self._next_lines(file, max_bytes, self._max_line_bytes)
        data = os.pread(file, max_bytes, self.offset)
        self._move_on(data)
        self.size = max(self.size, self.offset)  # it grew since we looked
        self.exhausted = self.offset >= self.size
        return data

    def _next_lines(self, file: int, max_bytes: int, max_line_bytes: int) -> bytes:
        at_rest = self._at_rest()
        look = (self.offset, self._stamp, at_rest)
        if self._fruitless == look:
            return b""
        data = os.pread(file, max_bytes, self.offset)
        if len(data) == max_bytes and b"\n" not in data and not self._inside_overlong:
            length = self._line_length(file, len(data), max_line_bytes)
            self._inside_overlong = length > max_line_bytes
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
        self._fruitless = None
        if len(rest) > _SCAN_BYTES and not end:
            self._fruitless = look
        whole = data[:end]
        self._move_on(whole)
        return whole

    def _line_length(self, file: int, length: int, max_line_bytes: int) -> int:
        """Bytes of the line at ``offset``, of which ``length`` are known to hold no newline."""
        while length <= max_line_bytes:
            piece = os.pread(file, _SCAN_BYTES, self.offset + length)
            if not piece:
                return length
            if (end := piece.find(b"\n")) >= 0:
                return length + end + 1
            length += len(piece)
        return length

    def _at_rest(self) -> bool:
        """By the file system's clock or by our own."""
        age = time.time() - (self.modified or 0.0)
        return max(age, time.monotonic() - self._stamp_since) >= QUIET_S

    def _move_on(self, data: bytes) -> None:
        self.offset += len(data)
        self._head = (self._head + data[:_FINGERPRINT_BYTES])[:_FINGERPRINT_BYTES]
        self._tail = (self._tail + data[-_FINGERPRINT_BYTES:])[-_FINGERPRINT_BYTES:]


class Stamp(NamedTuple):
    """The state of a file: results stay valid while it is equal."""

    device: int
    inode: int
    size: int
    modified_ns: int
    head: str = ""
    """Hash of the first bytes, where the file was read for it."""


def stamp_of(status: os.stat_result) -> Stamp:
    """The state without a hash of the content: nothing is read."""
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def identity_of(file: int) -> Stamp:
    """The state of an open file, with a hash of its first bytes."""
    head = hashlib.sha256(os.pread(file, _FINGERPRINT_BYTES, 0)).hexdigest()[:16]
    return stamp_of(os.fstat(file))._replace(head=head)


def read_at(path: Path, start: int, size: int) -> bytes:
    """Bytes of a regular file; fewer at its end. ``OSError``: it cannot be read."""
    with opened(path) as file:
        return os.pread(file, size, start)


def read_lines_at(file: int, start: int, want: int, most: int, lines: int = 1) -> bytes:
    """``want`` bytes of an open file, or more (about ``most``) until they hold ``lines`` ends."""
    while True:
        data = os.pread(file, want, start)
        if len(data) < want or want >= most or data.count(b"\n") >= lines:
            return data
        want *= 4


def open_regular_file(path: Path) -> int:
    """Open ``path`` for reading; never blocks on a pipe or a device. The caller closes it.

    ``OSError``: it cannot be opened, or is not a regular file.
    """
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "not a regular file")
    return file


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of the file, closed with the context; ``OSError`` as ``open_regular_file``."""
    file = open_regular_file(path)
    try:
        yield file
    finally:
        os.close(file)


def is_an_object(line: bytes) -> bool:
    """Whether the last line of a file is complete, though its newline is missing."""
    if not line.rstrip().endswith(b"}"):
        return False
    try:
        object_of(line.lstrip(b"\0"))
    except BadLine:
        return False
    return True
