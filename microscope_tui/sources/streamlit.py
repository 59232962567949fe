"""The older microscope's ``training_metrics.json``: an array that is written whole every time.

Each entry has ``step`` and, per layer, ``layer_{i}_load``: the shares of the experts as first
choice. Its entropies follow from those, and its drop rates were simulated: neither is read.
"""

import re
import time
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import msgspec

from microscope_tui.runlog import QUIET_S, Stamp, read_at, safe_text, stamp_of
from microscope_tui.sources.keys import (
    MAX_EXPERTS,
    MAX_LAYERS,
    MAX_ROW_BYTES,
    Rule,
    as_number,
    as_step,
    as_time,
    decode_json,
)
from microscope_tui.sources.reader import Batch, Record, RecordReader, SourceRequest, Unreadable
from microscope_tui.sources.row_records import counts_of_shares, run_record, step_record

MOST_BYTES = MAX_ROW_BYTES
"""10 layers × 8 experts × 100 entries have 0.2 MB."""
_LOAD = re.compile(r"layer_(\d{1,5})_load")
_LOAD_BYTES = re.compile(rb'"layer_\d{1,5}_load"\s*:\s*\[')
_Shares = dict[int, list[float]]


class StreamlitReader(RecordReader):
    """The entries of the array as steps; ``restarted`` if earlier entries were changed."""

    @classmethod
    def begins(cls, head: bytes, own: Sequence[Rule]) -> bool:
        """See ``Reader``: an array that begins with loads of layers."""
        return re.match(rb"\s*\[\s*\{", head) is not None and bool(_LOAD_BYTES.search(head))

    def __init__(self, path: Path, name: str, request: SourceRequest) -> None:
        super().__init__(path, name, request)
        self._version: Stamp | None = None
        self._given = 0
        self._digest = b""  # of the entries that were given
        self._header: Record = {}  # of the last entry that was given

    def read(self, max_bytes: int = 1 << 20) -> Batch:
        """See ``RecordReader``; the whole array is read at once."""
        self.exhausted = True
        try:
            version = stamp_of(self.path.stat())
            if version == self._version:
                return Batch()
            if version.size > MOST_BYTES:
                raise Unreadable(self._message(f"{version.size:,} bytes, at most {MOST_BYTES:,}"))
            data = read_at(self.path, 0, MOST_BYTES)
        except FileNotFoundError:
            self.deleted = self._version is not None
            return Batch()
        self.deleted, self.size, self.modified = False, len(data), version.modified_ns / 1e9
        entries = self._entries(data)
        if entries is None:
            return Batch()  # it is being written
        self._version, self.offset = version, self.size
        return self._new(entries)

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

    def _new(self, entries: Sequence[dict[str, object]]) -> Batch:
        """The records of the entries that were not given before."""
        old = entries[: self._given]
        restarted = self._given > 0 and (len(old) < self._given or _digest(old) != self._digest)
        if restarted:
            self._given, self._header = 0, {}
        records = [record for entry in entries[self._given :] for record in self._records(entry)]
        self._given, self._digest = len(entries), _digest(entries)
        return Batch(records, restarted)

    def _records(self, entry: dict[str, object]) -> list[Record]:
        step, shares = as_step(entry.get("step")), _shares_of(entry)
        if step is None or not shares:
            return []
        layers = sorted(shares)
        experts = [len(shares[layer]) for layer in layers]
        profile = self._request.profile or "pretrain"
        header = run_record(
            self._name, layers, experts, 1, writer="streamlit", counts="top1", profile=profile
        )
        is_new, self._header = header != self._header, header
        counts = [counts_of_shares(shares[layer]) for layer in layers]
        loss, at = as_number(entry.get("loss")), as_time(entry.get("time"))
        record = step_record(step, counts, time=at, loss=loss)
        return [header, record] if is_new else [record]


def _shares_of(entry: dict[str, object]) -> _Shares:
    """The loads of an entry by layer; a list that holds anything but numbers is left out."""
    found: _Shares = {}
    for key, value in entry.items():
        match = _LOAD.fullmatch(key)
        if match is None or not isinstance(value, list) or not 0 < len(value) <= MAX_EXPERTS:
            continue
        numbers = [number for item in value if (number := as_number(item)) is not None]
        if int(match[1]) < MAX_LAYERS and len(numbers) == len(value):
            found[int(match[1])] = numbers
    return found


def _digest(entries: Sequence[dict[str, object]]) -> bytes:
    return blake2b(msgspec.json.encode(entries)).digest()
