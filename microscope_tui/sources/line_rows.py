"""Rows of named numbers from a file of lines that may still grow.

A line that holds no row (a writer was killed within it) is counted as a defect and skipped; a file
that begins with many of them is refused.
"""

from abc import abstractmethod
from pathlib import Path

from microscope_tui.runlog import BadLine, Defects, LineSplitter, LogFollower, safe_text
from microscope_tui.sources.keys import Keys
from microscope_tui.sources.named_numbers import MAX_ROW_BYTES
from microscope_tui.sources.reader import Row, RowReader, Rows, Unreadable

FOREIGN_BYTES = 1 << 20
"""A file whose first megabyte holds no row at all is refused."""


class LineRows(RowReader):
    """Follows the lines of ``path``; a torn last line waits for its end."""

    kind = ""
    """What a line should be, for messages."""

    def __init__(self, path: Path, keys: Keys) -> None:
        super().__init__(keys)
        self._follower = LogFollower(path, MAX_ROW_BYTES)
        self._begin()

    def _begin(self) -> None:
        """Start from the first line, also after the file was replaced."""
        self._splitter = LineSplitter(MAX_ROW_BYTES)
        self._has_rows = False
        self.defects = Defects()
        """Lines that were skipped."""

    @abstractmethod
    def _row(self, line: bytes) -> Row | None:
        """The row of a line; ``None`` for one without any.

        Raises:
            BadLine: the line is skipped for this reason.
            Unreadable: nothing that follows can be read either.
        """

    def read(self, max_bytes: int = 1 << 20) -> Rows:
        """See ``RowReader``."""
        follower = self._follower
        chunk = follower.read(max_bytes)
        if chunk.restarted:
            self._begin()
        rows = []
        for number, line in self._splitter.feed(chunk.data):
            try:
                row = self._row(line)
            except BadLine as error:
                self.defects.add(number, str(error))
                continue
            self._has_rows = True
            if row is not None and row.values:
                rows.append(row)
        while self._splitter.overlong:
            number = self._splitter.overlong.pop(0)
            self.defects.add(number, f"longer than {MAX_ROW_BYTES >> 20} MB, skipped")
        self.offset, self.size, self.modified = follower.offset, follower.size, follower.modified
        self.deleted, self.exhausted = follower.deleted, follower.exhausted
        if not self._has_rows and self.defects.count and self.offset >= FOREIGN_BYTES:
            name = safe_text(follower.path.name)
            raise Unreadable(
                f"{name}: {self.offset:,} bytes hold no {self.kind} "
                f"({self.defects.first[0]}); give another --source"
            )
        return Rows(rows, chunk.restarted)
