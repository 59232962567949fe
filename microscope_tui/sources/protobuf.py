"""Fields of a protobuf message, without its definition.

Only one level is decoded at a time, so that no nesting can exhaust the stack:
https://protobuf.dev/programming-guides/encoding/
"""

import struct
from collections.abc import Callable, Iterator

from microscope_tui.sources.keys import Target

MAX_STEP = 2**53
MAX_HEADS = 1 << 18
"""Keys that are recognised by their bytes: 512 experts in 128 layers, four times. Further ones are
looked up each time."""
_MAX_HEAD_BYTES = 600  # a key of 512 characters, and what is around it
_MAX_SLOW_BYTES = 128  # longer ones are histograms and tensors: others in every step
SLOW = "slow"
Head = Target | str | None
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10
_SIZE_OF = {FIXED64: 8, FIXED32: 4}


class BadMessage(ValueError):
    """The bytes are not a protobuf message; the message says why."""


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The unsigned number at ``at``, and the offset behind it.

    ``BadMessage``: it is cut off, or longer than 10 bytes.
    """
    if at < len(data) and data[at] < 128:
        return data[at], at + 1
    value = shift = 0
    for end, byte in enumerate(data[at : at + _MAX_VARINT_BYTES], at + 1):
        value |= (byte & 127) << shift
        if byte < 128:
            return value, end
        shift += 7
    raise BadMessage(f"a number at byte {at} has no end")


def signed(value: int) -> int:
    """A varint as a signed 64-bit number (int32 and int64 fields)."""
    return ((value & (1 << 64) - 1) ^ (1 << 63)) - (1 << 63)


def field(data: bytes, at: int) -> tuple[int, int | bytes, int]:
    """The field at ``at``: its number, its value, and the offset behind it.

    The value is an unsigned number for varints, else the raw bytes (fixed-size numbers in little
    endian).

    Raises:
        BadMessage: it is cut off, or of a kind that is not in use (groups).
    """
    tag, at = varint(data, at)
    number, kind = tag >> 3, tag & 7
    if kind == VARINT:
        value, at = varint(data, at)
        return number, value, at
    if kind == BYTES:
        length, at = varint(data, at)
    elif kind in _SIZE_OF:
        length = _SIZE_OF[kind]
    else:
        raise BadMessage(f"field {number} has the unknown wire type {kind}")
    if at + length > len(data):
        raise BadMessage(f"field {number} has {length} bytes, {len(data) - at} are left")
    return number, data[at : at + length], at + length


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of every field of a message; see ``field``.

    ``BadMessage``, while they are taken: the bytes are not a message.
    """
    at, end = 0, len(data)
    while at < end:
        number, value, at = field(data, at)
        yield number, value


def as_bytes(value: int | bytes) -> bytes:
    """The value of a length-delimited field; ``BadMessage`` for a number."""
    if isinstance(value, int):
        raise BadMessage("a number where a text or a message belongs")
    return value


def as_number(value: int | bytes) -> int:
    """The value of a varint field; ``BadMessage`` for anything else."""
    if not isinstance(value, int):
        raise BadMessage("a text or a message where a number belongs")
    return value


def fixed_numbers(value: int | bytes, kind: str) -> tuple[float, ...]:
    """The numbers of a fixed size in a field, packed or one; ``kind``: as in ``struct``."""
    data, size = as_bytes(value), struct.calcsize(f"<{kind}")
    count = len(data) // size
    return struct.unpack_from(f"<{count}{kind}", data)


def whole_numbers(value: int | bytes) -> list[int]:
    """The signed varints in a field, packed or one."""
    if isinstance(value, int):
        return [signed(value)]
    found: list[int] = []
    at = 0
    while at < len(value):
        number, at = varint(value, at)
        found.append(signed(number))
    return found


class PrefixTargets(dict[bytes, Head]):
    """What a message is, by all of its bytes but the number, which are the same in every step.

    A target, another key, ``None`` if it has no target, or ``SLOW``: decode it by its fields.
    """

    def __init__(self, find: Callable[[bytes], Head]) -> None:
        super().__init__()
        self._find = find

    def __missing__(self, head: bytes) -> Head:
        found = self._find(head)
        most = _MAX_SLOW_BYTES if found is SLOW else _MAX_HEAD_BYTES
        if len(self) < MAX_HEADS and len(head) <= most:
            self[head] = found
        return found
