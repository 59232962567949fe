"""The header of a safetensors file, and the integers of its tensors.

Layout: 8 bytes with the length of the header, the header in JSON (name → dtype, shape and
``data_offsets``), then the data. Every tensor must be inside the file, as long as its shape says,
and may not share bytes with another one.
"""

import math
import struct
from dataclasses import dataclass
from typing import Annotated

import msgspec

from microscope_tui.runlog import safe_text
from microscope_tui.sources.exact_bytes import Bytes

MOST_HEADER = 16 << 20
"""About 150 bytes a tensor: as many as ``MOST_TENSORS``."""
MOST_TENSORS = 1 << 17
MOST_ELEMENTS = 1 << 22
_METADATA = "__metadata__"
_BYTES = {
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1},
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1},
}
_INTEGERS = {
    **{"I64": "q", "I32": "i", "I16": "h", "I8": "b"},
    **{"U64": "Q", "U32": "I", "U16": "H", "U8": "B"},
}
_Natural = Annotated[int, msgspec.Meta(ge=0, lt=2**48)]


class _Entry(msgspec.Struct):
    dtype: str
    shape: Annotated[list[_Natural], msgspec.Meta(max_length=16)]
    data_offsets: tuple[_Natural, _Natural]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor is."""

    dtype: str
    """As in the file: ``I64``, ``F32`` …"""
    shape: tuple[int, ...]
    start: int
    """From the start of the file, in bytes."""


def read_header(data: Bytes) -> dict[str, StoredTensor]:
    """The tensors by name.

    Raises:
        Unreadable: damaged, above a limit, or with tensors that overlap or lie outside the file.
    """
    (length,) = struct.unpack("<Q", data.read(0, 8, "the length of the header"))
    if length > MOST_HEADER:
        raise data.broken(f"a header of {length:,} bytes; at most {MOST_HEADER:,} are read")
    raw = data.read(8, length, "the header")
    try:
        entries = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        entries.pop(_METADATA, None)
        if len(entries) > MOST_TENSORS:
            raise data.broken(f"{len(entries):,} tensors; at most {MOST_TENSORS:,} are read")
        found = {name: msgspec.json.decode(e, type=_Entry) for name, e in entries.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise data.broken(
            f"not a safetensors file: its header is damaged ({safe_text(error, 60)})"
        ) from None
    tensors: dict[str, StoredTensor] = {}
    end = 0
    for name, entry in sorted(found.items(), key=lambda item: item[1].data_offsets):
        start, stop = entry.data_offsets
        size = _BYTES.get(entry.dtype, 0) * math.prod(entry.shape)
        shown = safe_text(name, 40)
        if entry.dtype not in _BYTES or stop - start != size:
            raise data.broken(
                f"tensor {shown!r}: {stop - start:,} bytes are not {entry.shape} numbers of type "
                f"{safe_text(entry.dtype, 12)}"
            )
        if start < end or 8 + length + stop > data.size:
            raise data.broken(f"tensor {shown!r} overlaps another one or is not inside the file")
        end = max(end, stop)
        tensors[name] = StoredTensor(entry.dtype, tuple(entry.shape), 8 + length + start)
    return tensors


def integers(data: Bytes, tensor: StoredTensor, name: str) -> list[int]:
    """The numbers of a tensor of integers, in row-major order.

    Raises:
        Unreadable: another type, or too large.
    """
    number = math.prod(tensor.shape)
    code = _INTEGERS.get(tensor.dtype)
    if code is None or number > MOST_ELEMENTS:
        raise data.broken(
            f"tensor {safe_text(name, 40)!r} with {number:,} numbers of type {tensor.dtype}: at "
            f"most {MOST_ELEMENTS:,} integers are read"
        )
    size = number * struct.calcsize(f"<{code}")
    raw = data.read(tensor.start, size, f"tensor {safe_text(name, 40)!r}")
    return list(struct.unpack(f"<{number}{code}", raw))
