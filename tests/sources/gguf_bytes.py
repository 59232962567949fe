"""Writes GGUF files, and importance matrices as llama.cpp lays them out, for tests."""

import struct
from collections.abc import Sequence
from typing import Any


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(key: str, kind: int, raw: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + raw


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


def file_of(*values: bytes, tensors: Sequence[bytes] = (), version: int = 3) -> bytes:
    counts = struct.pack("<IQQ", version, len(tensors), len(values))
    return b"GGUF" + counts + b"".join(values) + b"".join(tensors)


def imatrix(rows: Any, chunks: int = 0, size: int = 0, datasets: int = 1) -> bytes:
    named = b"".join(text(f"/a/{n:03}") for n in range(datasets))
    values = (
        value("general.type", 8, text("imatrix")),
        value("imatrix.datasets", 9, struct.pack("<IQ", 8, datasets) + named),
        value("imatrix.chunk_count", 4, struct.pack("<I", chunks)),
        value("imatrix.chunk_size", 4, struct.pack("<I", size)),
    )
    places, body = [], b""
    for name, row in rows.items():
        places.append(tensor(name, (1, len(row)), offset=len(body)))
        body += struct.pack(f"<{len(row)}f", *row)
        body += bytes(-len(body) % 32)
    head = file_of(*values, tensors=places)
    return head + bytes(-len(head) % 32) + body
