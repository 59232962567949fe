"""The records of a TFRecord file, the container of TensorBoard's event files.

A record is its length (8 bytes, little endian), a masked crc32c of the length, the data, and a
masked crc32c of the data. The checksum of the length is always verified. That of the data is not:
crc32c is not in the standard library, and in Python it would take a hundred times as long as
decoding the event. https://www.tensorflow.org/tutorials/load_data/tfrecord
"""

import struct

from microscope_tui.sources.reader import Unreadable

HEADER_BYTES = 12
OVERHEAD_BYTES = 16
MAX_RECORD_BYTES = 64 * 1024 * 1024
"""Longer records are skipped: they hold pictures or graphs, no scalars."""
_MAX_KNOWN_HEADERS = 1 << 16
_HEADER = struct.Struct("<QI")
_POLYNOMIAL = 0x82F63B78
_MASK_DELTA = 0xA282EAD8


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def masked_crc32c(data: bytes) -> int:
    """The checksum of TFRecord files: crc32c, rotated, plus a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def length_of(header: bytes) -> int | None:
    """The length of the data after a record's first 12 bytes; ``None`` if its checksum is wrong."""
    length, checksum = _HEADER.unpack(header)
    return length if masked_crc32c(header[:8]) == checksum else None


class RecordSplitter:
    """Splits a byte stream into the data of its records; keeps what is torn for the next bytes."""

    def __init__(self, start: int = 0) -> None:
        """``start``: offset in the file of the first byte, for messages."""
        self.damage: Unreadable | None = None
        """Why nothing follows the records that were returned."""
        self.overlong = 0
        """Records above ``MAX_RECORD_BYTES``, which were skipped."""
        self._parts: list[bytes] = []  # what is torn
        self._have = 0
        self._need = HEADER_BYTES  # bytes with which there is something to do
        self._skip = 0  # bytes of an overlong record that are still to come
        self._at = start
        self._lengths: dict[bytes, int] = {}  # of headers that were verified

    def feed(self, data: bytes) -> list[bytes]:
        """The records that ``data`` completes."""
        if self.damage is not None:
            return []
        self._parts.append(data)
        self._have += len(data)
        if self._have < self._need:
            return []
        data = b"".join(self._parts)
        records, used = self._split(data)
        rest = data[used:]
        self._parts, self._have, self._at = [rest], len(rest), self._at + used
        return records

    def _split(self, data: bytes) -> tuple[list[bytes], int]:
        records: list[bytes] = []
        lengths, end = self._lengths, len(data)
        at = min(self._skip, end)
        self._skip -= at
        while not self._skip:
            start = at + HEADER_BYTES
            self._need = HEADER_BYTES
            if start > end:
                break
            header = data[at:start]
            length = lengths.get(header)
            if length is None:
                length = self._verified(header, self._at + at)
                if length is None:
                    break
            stop = start + length
            if length > MAX_RECORD_BYTES:
                self.overlong += 1
                at, self._skip = min(end, stop + 4), max(0, stop + 4 - end)
                continue
            if stop + 4 > end:
                self._need = OVERHEAD_BYTES + length
                break
            records.append(data[start:stop])
            at = stop + 4
        return records, at

    def _verified(self, header: bytes, at: int) -> int | None:
        length = length_of(header)
        if length is None:
            hole = " (zeros that a crash left)" if not any(header) else ""
            self.damage = Unreadable(
                f"the event file is damaged at byte {at:,}: the checksum of a length is wrong"
                f"{hole}: copy the file again. What comes before is shown"
            )
        elif len(self._lengths) < _MAX_KNOWN_HEADERS:
            self._lengths[header] = length
        return length


def find_record(data: bytes) -> int | None:
    """Where the first record in ``data`` begins that has a valid length, wherever ``data`` is from.

    The upper bytes of a length are zeros, so only a few places need their checksum computed, and a
    wrong one passes once in four billion.
    """
    at = data.find(b"\0\0\0\0\0", 3)
    while at >= 0 and at + 9 <= len(data):
        if length_of(data[at - 3 : at + 9]) is not None:
            return at - 3
        at = data.find(b"\0\0\0\0\0", at + 1)
    return None
