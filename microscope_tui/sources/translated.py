"""A run of another tool as a source of log lines.

What a reader yields is written as lines of the run log into an unnamed spool file, so that history,
diagnosis and the screens read it like any log, and earlier steps can be read again.
"""

import time
from pathlib import Path

from microscope_tui.runlog import Chunk, Source, Spool, encode_record
from microscope_tui.sources.reader import RecordReader


class TranslatedLog(Source):
    """The lines of a reader; ``offset`` and ``size`` in bytes of its source."""

    def __init__(self, reader: RecordReader, spool: Spool | None, path: Path) -> None:
        """``path``: of the source, shown where there is no ``spool``."""
        super().__init__(spool.path if spool is not None else path, seekable=spool is not None)
        self.spool, self.translates = spool, True
        self._reader = reader

    def kept(self) -> tuple[int, int]:
        """The bytes of the lines that the spool holds."""
        return (0, 0) if self.spool is None else (self.spool.start, self.spool.end)

    def wait_s(self) -> float:
        """See ``Source``."""
        return self._reader.wait_s()

    def sampled(self, count: int) -> bytes:
        """See ``Source``."""
        return b"".join(map(encode_record, self._reader.sample(count)))

    def read(self, max_bytes: int = 1 << 20) -> Chunk:
        """The lines of the next records; see ``RecordReader.read``."""
        reader = self._reader
        batch = reader.read(max_bytes)
        if batch.restarted and self.spool is not None:
            self.spool.clear()
        if reader.modified != self.modified and self.modified is not None:
            self.changed_at = time.monotonic()
        lines = b"".join(map(encode_record, batch.records))
        if self.spool is not None:
            self.spool.keep(lines)
        self.offset, self.size, self.modified = reader.offset, reader.size, reader.modified
        self.deleted, self.exhausted = reader.deleted, reader.exhausted
        self.defects = reader.defects
        return Chunk(lines, batch.restarted)
