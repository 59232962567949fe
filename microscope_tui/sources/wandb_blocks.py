"""The records of a ``.wandb`` file: a LevelDB log with checksums of its own.

Seven bytes of header, then blocks of 32 KiB. A record is one chunk, or several where it crosses the
end of a block: FIRST, MIDDLE …, LAST. No chunk crosses the end of a block, so a reader can start at
any multiple of 32 KiB. The checksum is zlib's crc32 over the type and the data; LevelDB itself uses
a masked crc32c.
"""

import struct
import zlib
from collections.abc import Callable

from microscope_tui.sources.reader import Unreadable

BLOCK_BYTES = 32 * 1024
MAX_RECORD_BYTES = 64 * 1024 * 1024
"""As a line of a run log. 100,000 numbers of one step are 8 MB."""
FILE_HEADER = struct.Struct("<4sHB")
MAGIC = (b":W&B", 0xBEE1)
VERSION = 0
_CHUNK = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_SEEDS = [zlib.crc32(bytes([kind])) for kind in range(5)]


class RecordSplitter:
    """Splits a byte stream into records; keeps what is torn for the next bytes."""

    def __init__(self, keep: Callable[[bytes], bool], start: int = 0) -> None:
        """``start``: 0, or a multiple of 32 KiB from which the first whole record is taken.

        ``keep`` gets the first chunk of a record; false skips the record without collecting it.
        """
        self.damage: Unreadable | None = None
        """Why nothing follows the records that were returned."""
        self._keep = keep
        self._at = start  # offset in the file of the first byte of ``_rest``
        self._rest = b""
        self._parts: list[bytes] | None = None  # of the open record; none if it is skipped
        self._size = 0
        self._open = start > 0  # the chunks until the next record belong to one that is skipped

    def feed(self, data: bytes) -> list[bytes]:
        """The records that ``data`` completes."""
        records: list[bytes] = []
        if self.damage is None:
            data = self._rest + data
            try:
                used = self._split(data, records)
            except Unreadable as damage:
                self.damage, used = damage, len(data)
            self._at, self._rest = self._at + used, data[used:]
        return records

    def _split(self, data: bytes, records: list[bytes]) -> int:
        at, end, base = 0, len(data), self._at
        if base == 0:
            if end < FILE_HEADER.size:
                return 0
            check_file_header(data)
            at = FILE_HEADER.size
        while True:
            left = BLOCK_BYTES - (base + at) % BLOCK_BYTES
            body = at + _CHUNK.size
            if left < _CHUNK.size:  # the end of a block is filled up
                if at + left > end:
                    return at
                at += left
                continue
            if body > end:
                return at
            checksum, length, kind = _CHUNK.unpack_from(data, at)
            if not (checksum or length or kind):  # a hole that a crash left
                if at + left > end:
                    return at
                at += left
                continue
            if not _FULL <= kind <= _LAST or length > left - _CHUNK.size:
                raise _damaged(base + at, f"its type is {kind}, its length {length}")
            if body + length > end:
                return at
            chunk = data[body : body + length]
            if (found := zlib.crc32(chunk, _SEEDS[kind])) != checksum:
                raise _damaged(base + at, f"its checksum is {found:08x}, not {checksum:08x}")
            self._take(kind, chunk, records, base + at)
            at = body + length

    def _take(self, kind: int, chunk: bytes, records: list[bytes], at: int) -> None:
        if kind in (_FULL, _FIRST):  # a record before it that has no end is dropped
            keeps, self._open = self._keep(chunk), kind == _FIRST
            self._parts, self._size = [chunk] if keeps and self._open else None, len(chunk)
            if keeps and kind == _FULL:
                records.append(chunk)
            return
        if not self._open:
            raise _damaged(at, "it continues a record that has no beginning")
        if self._parts is not None:
            self._size += len(chunk)
            if self._size > MAX_RECORD_BYTES:
                raise _damaged(at, f"its record is longer than {MAX_RECORD_BYTES:,} bytes")
            self._parts.append(chunk)
            if kind == _LAST:
                records.append(b"".join(self._parts))
        if kind == _LAST:
            self._parts, self._open = None, False


def check_file_header(data: bytes) -> None:
    """Refuse what is not a ``.wandb`` file, or one of a version that is not known.

    Raises:
        Unreadable: in words.
    """
    ident, magic, version = FILE_HEADER.unpack_from(data)
    if (ident, magic) != MAGIC:
        raise Unreadable("not a .wandb file: its first seven bytes are not the header of W&B")
    if version != VERSION:
        raise Unreadable(
            f"a .wandb file of version {version}, this reads version {VERSION}: update "
            "moe-microscope, or export the run from W&B as CSV"
        )


def _damaged(at: int, why: str) -> Unreadable:
    return Unreadable(
        f"the .wandb file is damaged at byte {at:,} ({why}): copy it again. "
        "What comes before is shown"
    )
