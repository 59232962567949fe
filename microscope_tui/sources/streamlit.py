"""The older microscope's ``training_metrics.json``: an array that is written whole every time.

Each entry has ``step`` and, per layer, ``layer_{i}_load``: the shares of the experts as first
choice. Its entropies follow from those, and its drop rates were simulated: neither is read.
"""

import re
import time
from collections.abc import Sequence

from microscope_tui.runlog import QUIET_S, Stamp, read_at, safe_text, stamp_of
from microscope_tui.sources.keys import MAX_ROW_BYTES, Rule, as_step, as_time, decode_json, matched
from microscope_tui.sources.reader import Row, RowReader, Rows, Unreadable

_LOAD_BYTES = re.compile(rb'"layer_\d{1,5}_load"\s*:\s*\[')


class StreamlitReader(RowReader):
    """The entries of the array as steps; ``restarted`` if earlier entries were changed."""

    counts = "top1"
    _version: Stamp | None = None
    _given = 0
    _before = b""  # the bytes of the entries that were given

    @classmethod
    def begins(cls, head: bytes, own: Sequence[Rule]) -> bool:
        return re.match(rb"\s*\[\s*\{", head) is not None and bool(_LOAD_BYTES.search(head))

    def read(self, max_bytes: int = 1 << 20) -> Rows:
        """The rows of the entries that are new; the whole array is read at once.

        Half of an array counts as being written until the file is quiet. ``Unreadable``: it is
        longer than ``MAX_ROW_BYTES``, or is not such an array.
        """
        self.exhausted = True
        try:
            version = stamp_of(self.path.stat())
            if version == self._version:
                return Rows()
            if version.size > MAX_ROW_BYTES:
                raise Unreadable(
                    self._message(f"{version.size:,} bytes, at most {MAX_ROW_BYTES:,}")
                )
            data = read_at(self.path, 0, MAX_ROW_BYTES)
        except FileNotFoundError:
            self.deleted = self._version is not None
            return Rows()
        self.deleted = False
        self.size = len(data)
        self.modified = version.modified_ns / 1e9
        entries = self._entries(data)
        if entries is None:
            return Rows()  # it is being written
        self._version = version
        self.offset = self.size
        restarted = not data.startswith(self._before)
        new = entries if restarted else entries[self._given :]
        self._given = len(entries)
        self._before = data[: data.rfind(b"}") + 1]
        rows = [
            Row(step, as_time(entry.get("time")), list(matched(entry, self.keys)))
            for entry in new
            if (step := as_step(entry.get("step"))) is not None
        ]
        return Rows(rows, restarted)

    def _message(self, why: str) -> str:
        return f"{safe_text(self.path.name)}: {why}; not the file that the older microscope wrote"

    def _entries(self, data: bytes) -> list[dict[str, object]] | None:
        try:
            entries = decode_json(data)
        except ValueError as error:
            if time.time() - (self.modified or 0.0) < QUIET_S:
                return None
            raise Unreadable(self._message(safe_text(str(error)))) from error
        if not isinstance(entries, list):
            raise Unreadable(self._message("not an array"))
        return [entry for entry in entries if isinstance(entry, dict)]
