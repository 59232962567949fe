"""Writes event files as ``torch.utils.tensorboard`` and TensorFlow do, for tests."""

import struct

from microscope_tui.sources import masked_crc32c
from tests.sources.wandb_bytes import part, varint


def record(data: bytes) -> bytes:
    """A TFRecord."""
    length = struct.pack("<Q", len(data))
    checksums = (struct.pack("<I", masked_crc32c(x)) for x in (length, data))
    return length + next(checksums) + data + next(checksums)


def fixed(number: int, value: float, layout: str) -> bytes:
    """A field of type double (``<d``) or float (``<f``)."""
    return varint(number << 3 | (1 if layout == "<d" else 5)) + struct.pack(layout, value)


def value(tag: str, number: float) -> bytes:
    """``Summary.Value`` with a ``simple_value``."""
    return part(1, tag.encode()) + fixed(2, number, "<f")


def tensor_value(tag: str, tensor: bytes) -> bytes:
    """``Summary.Value`` with a tensor."""
    return part(1, tag.encode()) + part(8, tensor)


def event(step: int, wall: float, *values: bytes) -> bytes:
    """``Event`` with a summary."""
    at = part(2, step) if step else b""
    return fixed(1, wall, "<d") + at + part(5, b"".join(part(1, one) for one in values))


def file_of(*events: bytes) -> bytes:
    """An event file."""
    first = fixed(1, 1e9, "<d") + part(3, b"brain.Event:2")
    return b"".join(map(record, (first, *events)))
