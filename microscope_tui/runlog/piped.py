"""A log that arrives through a pipe: ``ssh host tail -n +1 -F … | moe-microscope -``.

A thread does the waiting, ``read`` only takes what has arrived. The room for what waits is
bounded: when it is full the thread stops reading, and the writer at the other end waits. With a
spool everything is kept on disk first, so that steps that were shown can be read again.
"""

import os
import select
import threading
import time
from pathlib import Path

from microscope_tui.runlog.spool import Spool
from microscope_tui.runlog.tail import Chunk, Source

CAPACITY_BYTES = 8 << 20
_PIECE_BYTES = 1 << 16


class PipedLog(Source):
    """Complete lines from a descriptor; ``size`` counts the bytes received so far."""

    def __init__(
        self,
        descriptor: int,
        name: str,
        capacity: int = CAPACITY_BYTES,
        spool: Spool | None = None,
    ) -> None:
        """``name``: shown in place of a path."""
        super().__init__(Path(name) if spool is None else spool.path, seekable=spool is not None)
        self.spool = spool
        self.ended = False
        """Whether the writer closed its end and everything was returned."""
        self._descriptor = descriptor
        self._capacity = capacity
        self._changed = threading.Condition()
        self._waiting = bytearray()
        self._closed = False  # nothing more will arrive
        self._error: OSError | None = None
        self._inside_line = False  # the start of the next line was returned
        threading.Thread(target=self._receive, name="piped log", daemon=True).start()

    def kept(self) -> tuple[int, int]:
        """The bytes that the spool holds."""
        return (0, 0) if self.spool is None else (self.spool.start, self.spool.end)

    def read(self, max_bytes: int = 1 << 20) -> Chunk:
        """The next whole lines that have arrived, or a piece of a line that is longer.

        Nobody cuts off what is in a pipe, so the last line before its end is handed out whole.

        Raises:
            OSError: the descriptor could not be read on; everything before was handed out.
        """
        with self._changed:
            data = bytes(self._waiting[:max_bytes])
            whole = data.rfind(b"\n") + 1
            at_end = self._closed and len(data) == len(self._waiting)
            if at_end or (not whole and len(data) >= min(max_bytes, self._capacity)):
                whole = len(data)
            data = data[:whole]
            del self._waiting[:whole]
            self.offset += whole
            self._changed.notify_all()
            if data:
                self._inside_line = not data.endswith(b"\n")
            if at_end:
                if self._error is not None and not data:
                    self.ended = self.exhausted = True
                    raise self._error
                if self._inside_line:
                    data, self._inside_line = data + b"\n", False
                self.ended = self._error is None
            self.exhausted = at_end or (not self._closed and b"\n" not in self._waiting)
        return Chunk(data)

    def _receive(self) -> None:
        error: OSError | None = None
        try:
            while piece := self._next_piece():
                if self.spool is not None:
                    self.spool.keep(piece)
                with self._changed:
                    self._waiting += piece
                    self.size += len(piece)
                    self.modified, self.changed_at = time.time(), time.monotonic()
                    self._changed.wait_for(lambda: len(self._waiting) < self._capacity)
        except OSError as caught:
            error = caught
        with self._changed:
            self._closed, self._error = True, error

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
    try:
        pipe = os.dup(0)
    except OSError:
        raise OSError("the standard input is closed: pipe a log into it, or name a path") from None
    try:
        if os.isatty(pipe):
            raise OSError("the standard input is the terminal: pipe a log into it, or name a path")
        try:
            terminal = os.open("/dev/tty", os.O_RDWR)
        except OSError as error:
            raise OSError(
                f"no terminal to read keys from (/dev/tty: {error.strerror}): use `snapshot -` or "
                "`check -`"
            ) from None
    except OSError:
        os.close(pipe)
        raise
    os.dup2(terminal, 0)
    os.close(terminal)
    return pipe
