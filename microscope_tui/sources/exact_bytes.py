"""Reads pieces of a regular file; a piece that is not all there is an error."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from microscope_tui.runlog import open_regular_file, safe_text
from microscope_tui.sources.reader import Unreadable

MOST_BYTES = 64 << 20
"""The longest piece read at once: as much as the longest line of a run log."""


class Bytes:
    """The bytes of one open file."""

    def __init__(self, file: int, name: str) -> None:
        self.file = file
        self.name = safe_text(name, 60)
        """Shown in messages."""
        self.size = os.fstat(file).st_size

    def read(self, offset: int, length: int, what: str) -> bytes:
        """``length`` bytes from ``offset``; ``what`` names them in the message.

        Raises:
            Unreadable: they are not all inside the file, or too many.
        """
        if length > MOST_BYTES:
            raise self.broken(
                f"{what}: {length:,} bytes, at most {MOST_BYTES:,} are read; is it damaged?"
            )
        if offset < 0 or length < 0 or offset + length > self.size:
            raise self.broken(
                f"{what} at {offset:,} is not inside the {self.size:,} bytes; copy the file again"
            )
        data = os.pread(self.file, length, offset)
        if len(data) != length:
            raise self.broken(f"{what}: the file became shorter while it was read")
        return data

    def broken(self, why: str) -> Unreadable:
        """The error that says what is wrong with this file."""
        return Unreadable(f"{self.name}: {why}")


@contextmanager
def opened(path: Path) -> Iterator[Bytes]:
    """The bytes of ``path`` while it is open.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    file = open_regular_file(path)
    try:
        yield Bytes(file, path.name)
    finally:
        os.close(file)
