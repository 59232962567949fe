"""A spool file for a pipe, so that its steps can be read again.

The file has no name from the start (``O_TMPFILE``) or loses it before the first byte is written,
and only its owner may open it: nothing is left however the program ends. Every byte keeps its
offset in the pipe. When the file is full, the newer half is copied to a fresh file at the same
offsets, with a hole in front of it, and the older half is dropped.
"""

import os
import tempfile
import weakref
from pathlib import Path
from typing import BinaryIO

MOST_BYTES = 1 << 30
"""A log of 58 routers with 256 experts fills this in about 10,000 steps."""
_COPY_BYTES = 1 << 20


class Spool:
    """Keeps the newest bytes of a stream; never uses more than ``limit`` of disk space."""

    def __init__(self, limit: int = MOST_BYTES) -> None:
        """Open the file in the folder for temporary files (``TMPDIR``).

        Raises:
            OSError: no file can be made there, or it could not be read again.
        """
        with _unnamed_file() as file:
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)
        self.path = Path(f"/dev/fd/{self._file}")
        """A path that can be opened while this object lives."""
        self.start = 0
        """Offset of the first kept byte."""
        self.end = 0
        """Offset after the last kept byte."""
        self.problem: str | None = None
        """Why nothing more is stored; earlier data stays."""
        self.limit = limit
        self._room = max(2, limit * 2 // 3)  # the other third is for the half that is copied
        os.close(os.open(self.path, os.O_RDONLY))  # a system without /dev/fd has no spool

    def keep(self, piece: bytes) -> None:
        """Append data. A full disk is not an error: see ``problem``."""
        if self.problem is not None:
            return
        half = self._room // 2
        try:
            for at in range(0, len(piece), half):
                part = piece[at : at + half]
                if self.end - self.start + len(part) > self._room:
                    self._drop_older()
                _write_at(self._file, part, self.end)
                self.end += len(part)
        except OSError as error:
            self.problem = error.strerror or str(error)

    def clear(self) -> None:
        """Forget everything: the next byte has offset 0 again."""
        os.ftruncate(self._file, 0)
        self.start = self.end = 0

    def _drop_older(self) -> None:
        start = max(self.start, self.end - self._room // 2)
        with _unnamed_file() as fresh:
            at = start
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
        data, offset = data[written:], offset + written
