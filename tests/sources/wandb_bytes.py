"""Writes ``.wandb`` files as wandb 0.31 does, so that tests can make any content and any damage."""

import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

BLOCK = 32 * 1024
FILE_HEADER = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def part(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def item(key: str | Sequence[str], value: object, *, old: bool = False) -> bytes:
    """``HistoryItem`` or ``ConfigItem``; ``old`` writers use ``key``, today's ``nested_key``."""
    names = [key] if isinstance(key, str) else key
    text = json.dumps(value, separators=(",", ":")).encode()
    return b"".join(part(1 if old else 2, name.encode()) for name in names) + part(16, text)


def history(values: Any, step: int | None = None, **options: bool) -> bytes:
    pairs = values.items() if isinstance(values, Mapping) else values
    items = b"".join(part(1, item(key, value, **options)) for key, value in pairs)
    of_step = b"" if step is None else part(2, part(1, step) if step else b"")
    return part(1, 7) + part(2, items + of_step)


def config(**values: object) -> bytes:
    return part(5, b"".join(part(1, item(key, value)) for key, value in values.items()))


def run(run_id: str = "abc123", display_name: str = "", **values: object) -> bytes:
    of_config = b"".join(part(1, item(key, value)) for key, value in values.items())
    name = part(8, display_name.encode()) if display_name else b""
    return part(17, part(1, run_id.encode()) + part(4, of_config) + name)


def exit_record(code: int) -> bytes:
    return part(18, part(1, code) if code else b"")


def chunk(kind: int, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(bytes([kind])))
    return struct.pack("<IHB", checksum, len(data), kind) + data


def log(records: Iterable[bytes]) -> bytes:
    return b"".join(pieces(records))


def pieces(records: Iterable[bytes]) -> Iterator[bytes]:
    yield FILE_HEADER
    at = len(FILE_HEADER)
    for record in records:
        first = True
        while True:
            left = BLOCK - at % BLOCK
            if left < 7:
                yield bytes(left)
                at, left = at + left, BLOCK
            now, record = record[: left - 7], record[left - 7 :]
            kind = (1 if first else 4) if not record else (2 if first else 3)
            yield chunk(kind, now)
            at += 7 + len(now)
            first = False
            if not record:
                break
