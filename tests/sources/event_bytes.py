"""Writes event files as ``torch.utils.tensorboard`` and TensorFlow do, for tests."""

import struct
from collections.abc import Sequence

import numpy as np

from microscope_tui.sources.tensorboard import masked_crc32c
from tests.sources.wandb_bytes import part, varint


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    checksums = (struct.pack("<I", masked_crc32c(x)) for x in (length, data))
    return length + next(checksums) + data + next(checksums)


def fixed(number: int, value: float, layout: str) -> bytes:
    return varint(number << 3 | (1 if layout == "<d" else 5)) + struct.pack(layout, value)


def value(tag: str, number: float) -> bytes:
    return part(1, tag.encode()) + fixed(2, number, "<f")


def tensor_value(tag: str, tensor: bytes) -> bytes:
    return part(1, tag.encode()) + part(8, tensor)


def histogram_value(
    tag: str, edges: Sequence[float], counts: Sequence[float], least: float, largest: float
) -> bytes:
    """``Summary.Value`` with a ``HistogramProto``; as torch, with an empty bin below the first."""
    ends = fixed(1, least, "<d") + fixed(2, largest, "<d")
    limits, buckets = (
        part(at, struct.pack(f"<{len(numbers)}d", *numbers))
        for at, numbers in ((6, edges), (7, [0.0, *counts]))
    )
    return part(1, tag.encode()) + part(5, ends + limits + buckets)


def cut(ids: np.ndarray, bins: int | np.ndarray) -> tuple[list[float], list[int]]:
    """Edges and counts as ``add_histogram(tag, ids, bins=bins)`` has them: without empty ends."""
    counts, edges = np.histogram(ids, bins)
    used = np.flatnonzero(counts)
    return edges[used[0] : used[-1] + 2].tolist(), counts[used[0] : used[-1] + 1].tolist()


def histogram_of(tag: str, ids: np.ndarray, bins: int | np.ndarray) -> bytes:
    return histogram_value(tag, *cut(ids, bins), ids.min(), ids.max())


def tensor(kind: int, shape: Sequence[int], values: bytes) -> bytes:
    """``TensorProto``; ``values``: the field with its numbers."""
    sizes = b"".join(part(2, part(1, size)) for size in shape)
    return part(1, kind) + part(2, sizes) + values


def plugin_value(tag: str, edges: Sequence[float], counts: Sequence[float]) -> bytes:
    """``Summary.Value`` of ``tf.summary.histogram``: left edge, right edge, count."""
    rows = zip(edges, edges[1:], counts, strict=False)
    packed = b"".join(struct.pack("<3d", *row) for row in rows)
    plugin = part(9, part(1, part(1, b"histograms")))
    return tensor_value(tag, tensor(2, (len(counts), 3), part(4, packed))) + plugin


def plugin_of(tag: str, ids: np.ndarray, bins: int) -> bytes:
    return plugin_value(tag, *cut(ids, bins))


def event(step: int, wall: float, *values: bytes) -> bytes:
    at = part(2, step) if step else b""
    return fixed(1, wall, "<d") + at + part(5, b"".join(part(1, one) for one in values))


def file_of(*events: bytes) -> bytes:
    first = fixed(1, 1e9, "<d") + part(3, b"brain.Event:2")
    return b"".join(map(record, (first, *events)))
