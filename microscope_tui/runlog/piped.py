"""A log that arrives through a pipe: ``ssh host tail -n +1 -F … | moe-microscope -``.

A thread does the waiting, ``read`` only takes what has arrived. When too much waits the thread
stops reading, and the writer at the other end waits. With a spool everything is kept on disk first,
so that steps that were shown can be read again.
"""

import os
import select
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import BinaryIO

from microscope_tui.runlog.tail import Chunk, Source

CAPACITY_BYTES = 8 << 20
MOST_BYTES = 1 << 30
"""Of a spool: a log of 58 routers with 256 experts fills this in about 10,000 steps."""
_PIECE_BYTES = 1 << 16
_COPY_BYTES = 1 << 20


class Spool:
    """Keeps the newest bytes of a stream in at most ``limit`` of disk space.

    The file has no name when the first byte is written, and only its owner may open it: nothing is
    left however the program ends. Every byte keeps its offset in the stream: of a full file the
    newer half is copied to a fresh one at the same offsets, with a hole in front of it.
    """

    def __init__(self, limit: int = MOST_BYTES) -> None:
        """Open a file without a name in the folder for temporary files (``TMPDIR``).

        Args:
            limit: Most bytes that it may take; of a longer log the beginning is dropped.

        Raises:
            OSError: no file can be made there, or it could not be read again.
        """
        with _unnamed_file() as file:
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)
        self.path = Path(f"/dev/fd/{self._file}")
        """A path that can be opened while this object lives."""
        self.start = 0
        self.end = 0
        """``start`` … ``end``: the offsets that are kept."""
        self.problem: str | None = None
        """Why nothing more is stored; earlier data stays."""
        self.limit = limit
        self._half = max(1, limit // 3)  # the third third is for the half that is copied
        os.close(os.open(self.path, os.O_RDONLY))  # a system without /dev/fd has no spool

    def keep(self, piece: bytes) -> None:
        """Append ``piece``; a full disk is not an error but the end of storing, see ``problem``."""
        if self.problem is not None:
            return
        try:
            for at in range(0, len(piece), self._half):
                part = piece[at : at + self._half]
                if self.end - self.start + len(part) > 2 * self._half:
                    self._drop_older()
                _write_at(self._file, part, self.end)
                self.end += len(part)
        except OSError as error:
            self.problem = error.strerror or str(error)

    def clear(self) -> None:
        """The next byte has offset 0."""
        os.ftruncate(self._file, 0)
        self.start = self.end = 0

    def _drop_older(self) -> None:
        at = start = max(self.start, self.end - self._half)
        with _unnamed_file() as fresh:
            while at < self.end:
                piece = os.pread(self._file, min(_COPY_BYTES, self.end - at), at)
                _write_at(fresh.fileno(), piece, at)
                at += len(piece)
            self.start = start  # first: a reader must not look for a step in the hole
            os.dup2(fresh.fileno(), self._file, inheritable=False)


def _unnamed_file() -> BinaryIO:
    return tempfile.TemporaryFile(prefix="moe-microscope-", buffering=0)


def _write_at(file: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data = data[written:]
        offset += written


class SpooledLog(Source):
    """It cannot be read again at its origin, only in its spool."""

    def __init__(self, name: Path, spool: Spool | None) -> None:
        """``name``: shown in place of a path."""
        if spool is not None:
            name = spool.path
        super().__init__(name, seekable=spool is not None)
        self.spool = spool

    def kept(self) -> tuple[int, int]:
        if self.spool is None:
            return 0, 0
        return self.spool.start, self.spool.end


class PipedLog(SpooledLog):
    """Complete lines from a descriptor; ``size`` counts the bytes received so far."""

    def __init__(self, descriptor: int, name: str, spool: Spool | None = None) -> None:
        super().__init__(Path(name), spool)
        self.ended = False
        """The writer closed its end and everything was returned."""
        self._descriptor = descriptor
        self._changed = threading.Condition()
        self._waiting = bytearray()
        self._closed = False  # nothing more will arrive
        self._error: OSError | None = None
        threading.Thread(target=self._receive, name="piped log", daemon=True).start()

    def read(self, max_bytes: int = 1 << 20) -> Chunk:
        """The next whole lines that have arrived, or a piece of a line that is longer.

        What is in a pipe is never cut off, so the last line before its end is handed out whole.

        Raises:
            OSError: the descriptor could not be read on; everything before was handed out.
        """
        with self._changed:
            data = bytes(self._waiting[:max_bytes])
            whole = data.rfind(b"\n") + 1
            if not whole and len(data) >= min(max_bytes, CAPACITY_BYTES):
                whole = len(data)
            del self._waiting[:whole]
            self.offset = min(self.offset + whole, self.size)
            self._changed.notify_all()
            self.exhausted = b"\n" not in self._waiting
            self.ended = self._closed and not self._waiting and not (self._error and whole)
            if self.ended and self._error is not None:
                raise self._error
        return Chunk(data[:whole])

    def _receive(self) -> None:
        error = None
        inside_line = False
        try:
            while piece := self._next_piece():
                if self.spool is not None:
                    self.spool.keep(piece)
                inside_line = not piece.endswith(b"\n")
                with self._changed:
                    self._waiting += piece
                    self.size += len(piece)
                    self.modified = time.time()
                    self.changed_at = time.monotonic()
                    self._changed.wait_for(lambda: len(self._waiting) < CAPACITY_BYTES)
        except OSError as caught:
            error = caught
        with self._changed:
            if inside_line:
                self._waiting += b"\n"
            self._closed = True
            self._error = error

    def _next_piece(self) -> bytes:
        while True:
            try:
                return os.read(self._descriptor, _PIECE_BYTES)
            except BlockingIOError:  # set by the other end of a shared terminal or socket
                select.select([self._descriptor], [], [])


def take_over_stdin() -> int:
    """Free descriptor 0 for the keyboard: the piped log moves to the descriptor returned.

    Call it before anything reads from the standard input.

    Raises:
        OSError: nothing is piped in, or there is no terminal to read keys from.
    """
    if os.isatty(0):
        raise OSError("the standard input is the terminal: pipe a log into it, or name a path")
    try:
        pipe = os.dup(0)
    except OSError:
        raise OSError("the standard input is closed: pipe a log into it, or name a path") from None
    try:
        terminal = os.open("/dev/tty", os.O_RDWR)
    except OSError as error:
        os.close(pipe)
        raise OSError(
            f"no terminal to read keys from (/dev/tty: {error.strerror}): use `snapshot -` or "
            "`check -`"
        ) from None
    os.dup2(terminal, 0)
    os.close(terminal)
    return pipe
