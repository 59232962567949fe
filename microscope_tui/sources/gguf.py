"""The metadata and the places of the tensors of a GGUF file (versions 2 and 3, little-endian).

Layout: ``docs/gguf.md`` of ggml. Only F32 tensors are read, and only those that are asked for.
"""

import struct
from dataclasses import dataclass, field

from microscope_tui.runlog import safe_text
from microscope_tui.sources.exact_bytes import Bytes

MOST_HEADER = 16 << 20
"""Bytes before the tensors; those of an importance matrix take less than 1 MB."""
MOST_TENSORS = 1 << 16
MOST_VALUES = 1 << 14
"""Key-value pairs."""
MOST_ARRAY = 1024
"""Elements of an array that are kept; longer arrays are skipped."""
MOST_ELEMENTS = 1 << 22
_MOST_NAME = 1 << 16
_MOST_DIMENSIONS = 4
_CHUNK = 1 << 16
_F32, _STRING, _ARRAY = 0, 8, 9
_SCALARS = {
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?"},
    **{10: "<Q", 11: "<q", 12: "<d"},
}
Value = int | float | str | list[int | float | str]


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where a tensor is."""

    shape: tuple[int, ...]
    """As in the file: the fastest dimension first."""
    is_float32: bool
    offset: int
    """From the start of the file."""


@dataclass(slots=True)
class GgufHeader:
    """What stands before the tensors."""

    values: dict[str, Value] = field(default_factory=dict)
    """Without arrays that are longer than ``MOST_ARRAY``."""
    tensors: dict[str, TensorPlace] = field(default_factory=dict)


def read_header(data: Bytes) -> GgufHeader:
    """Read everything but the tensors.

    Raises:
        Unreadable: no GGUF file, another version, damaged, or above a limit.
    """
    cursor = _Cursor(data)
    if cursor.take(4) != b"GGUF":
        raise data.broken("not a GGUF file")
    version = cursor.number("<I")
    if version not in (2, 3):
        raise data.broken(
            f"GGUF version {version}; versions 2 and 3 (little-endian) are read, convert the file"
        )
    tensors, values = cursor.number("<Q"), cursor.number("<Q")
    if tensors > MOST_TENSORS or values > MOST_VALUES:
        raise data.broken(
            f"{tensors:,} tensors and {values:,} values; at most {MOST_TENSORS:,} and "
            f"{MOST_VALUES:,} are read"
        )
    header = GgufHeader()
    for _ in range(values):
        key = cursor.text()
        value = _value(cursor, cursor.number("<I"))
        if value is not None:
            header.values[key] = value
    found = [_tensor(cursor) for _ in range(tensors)]
    alignment = header.values.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20:
        raise data.broken(f"general.alignment is {safe_text(alignment, 20)}")
    start = -(-cursor.at // alignment) * alignment
    for name, (shape, kind, offset) in found:
        header.tensors[name] = TensorPlace(shape, kind == _F32, start + offset)
    return header


def float32(data: Bytes, tensor: TensorPlace, name: str) -> list[float]:
    """The numbers of an F32 tensor in the order of the file.

    Raises:
        Unreadable: another type, too large, or not inside the file.
    """
    number = 1
    for size in tensor.shape:
        number *= size
    if not tensor.is_float32 or number > MOST_ELEMENTS:
        raise data.broken(
            f"tensor {safe_text(name, 60)} is not F32, or has more than {MOST_ELEMENTS:,} numbers"
        )
    raw = data.read(tensor.offset, 4 * number, f"tensor {safe_text(name, 60)}")
    return list(struct.unpack(f"<{number}f", raw))


class _Cursor:
    """Reads the header from its start on, in chunks."""

    def __init__(self, data: Bytes) -> None:
        self._data = data
        self._chunk, self._start = b"", 0
        self.at = 0
        """Bytes taken or skipped."""

    def take(self, length: int) -> bytes:
        """The next bytes."""
        if self.at + length > MOST_HEADER:
            raise self._data.broken(f"the metadata take more than {MOST_HEADER >> 20} MB")
        first = self.at - self._start
        if not 0 <= first <= first + length <= len(self._chunk):
            size = max(length, min(_CHUNK, self._data.size - self.at))
            self._chunk = self._data.read(self.at, size, "the metadata")
            self._start, first = self.at, 0
        self.at += length
        return self._chunk[first : first + length]

    def skip(self, length: int) -> None:
        """Leave out bytes; that they are there is checked where the next are taken."""
        self.at += length

    def number(self, layout: str) -> int:
        """An integer (or another scalar, by its layout)."""
        value: int = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        return value

    def text(self, most: int = _MOST_NAME) -> str:
        """A string; a longer one than ``most`` is refused."""
        length = self.number("<Q")
        if length > most:
            raise self._data.broken(f"a text of {length:,} bytes, at most {most:,} are read")
        return self.take(length).decode("utf-8", "replace")

    def refuse(self, why: str) -> Exception:
        """The error for what was found."""
        return self._data.broken(why)


def _value(cursor: _Cursor, kind: int) -> Value | None:
    """One value; ``None`` for an array that is too long to keep."""
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind])
    if kind == _STRING:
        return cursor.text(MOST_HEADER)
    if kind != _ARRAY:
        raise cursor.refuse(f"a value of the unknown type {kind}")
    inner, length = cursor.number("<I"), cursor.number("<Q")
    if inner not in _SCALARS and inner != _STRING:
        raise cursor.refuse(f"an array of the unknown type {inner}")
    if length > MOST_HEADER:
        raise cursor.refuse(f"an array of {length:,} elements")
    if length <= MOST_ARRAY:
        texts = inner == _STRING
        return [cursor.text() if texts else cursor.number(_SCALARS[inner]) for _ in range(length)]
    if inner in _SCALARS:
        cursor.skip(length * struct.calcsize(_SCALARS[inner]))
    else:
        for _ in range(length):
            cursor.skip(cursor.number("<Q"))
    return None


def _tensor(cursor: _Cursor) -> tuple[str, tuple[tuple[int, ...], int, int]]:
    name = cursor.text()
    dimensions = cursor.number("<I")
    if dimensions > _MOST_DIMENSIONS:
        raise cursor.refuse(f"tensor {safe_text(name, 60)} has {dimensions} dimensions")
    shape = tuple(cursor.number("<Q") for _ in range(dimensions))
    return name, (shape, cursor.number("<I"), cursor.number("<Q"))
