"""The run of another tool as bytes of a run log.

Everything above reads a source as it reads a pipe: lines in the order of their steps, and an
unnamed spool file in which the earlier ones can be read again.
"""

import time

from microscope_tui.runlog import Chunk, Spool, SpooledLog, encode_record
from microscope_tui.sources.reader import BUSY_S, RecordReader, SourceRequest


class TranslatedLog(SpooledLog):
    """The lines of a reader; ``offset`` and ``size`` in bytes of its source."""

    def __init__(self, reader: RecordReader) -> None:
        try:
            spool = Spool()
        except OSError:  # no folder for temporary files: earlier steps cannot be shown again
            spool = None
        super().__init__(reader.path, spool)
        self.translates = True
        self._reader = reader
        self._was_whole = False

    @property
    def proposed(self) -> SourceRequest | None:
        """A request that would read keys not read so far; ``None`` if there are none."""
        return self._reader.proposed

    def wait_s(self) -> float:
        return self._reader.wait_s()

    def sampled(self, count: int) -> bytes:
        return b"".join(map(encode_record, self._reader.sample(count)))

    def read(self, max_bytes: int = 1 << 20) -> Chunk:
        reader = self._reader
        try:
            batch = reader.read(max_bytes)
        except BlockingIOError:  # a database of which a later try will succeed
            now = time.time()
            self.busy_since = self.busy_since or now
            if not self._was_whole and now - self.busy_since > BUSY_S:
                raise
            return Chunk(b"")
        self.busy_since = None
        if reader.modified != self.modified and self.modified is not None:
            self.changed_at = time.monotonic()
        lines = b"".join(map(encode_record, batch.records))
        if self.spool is not None:
            if batch.restarted:
                self.spool.clear()
            self.spool.keep(lines)
        self.report(reader)
        self._was_whole |= reader.exhausted
        self.defects, self.missing = reader.defects, reader.missing
        self.parts, self.withheld = reader.parts, reader.withheld
        return Chunk(lines, batch.restarted)
