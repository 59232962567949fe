"""The header of safetensors files: equal to the library, and checked before anything is read."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from microscope_tui.sources import Unreadable, opened, tensorrt_llm

DTYPES = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16]


def read(path: Path, content: bytes | None = None) -> dict[str, tuple[tuple[int, ...], list[int]]]:
    if content is not None:
        path.write_bytes(content)
    with opened(path) as data:
        return {
            name: (tensor.shape, tensorrt_llm.integers(data, tensor, name))
            for name, tensor in tensorrt_llm.read_tensors(data).items()
        }


def file_of(header: Any, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_integers_read_as_the_library_saved_them(dtype: torch.dtype, tmp_path: Path) -> None:
    shapes: list[tuple[int, ...]] = [(), (0,), (5,), (2, 3)]
    tensors = {str(shape): torch.randint(0, 100, shape).to(dtype) for shape in shapes}
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors", metadata={"by": "us"})
    assert read(tmp_path / "x.safetensors") == {
        str(shape): (shape, tensors[str(shape)].flatten().tolist()) for shape in shapes
    }


def entry(start: int, stop: int, shape: Any = (2,), dtype: str = "I32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "length of the header"),
        (struct.pack("<Q", 1 << 60), "at most"),
        (struct.pack("<Q", 100) + b"{}", "not inside"),
        (file_of(b"hello"), "header is damaged"),
        (file_of([1]), "header is damaged"),
        (file_of({"a": entry(0, 8, [-2])}, b"\0" * 8), "header is damaged"),
        (file_of({"a": entry(0, 8, [1] * 17)}, b"\0" * 8), "header is damaged"),
        (file_of({"a": entry(0, 8)}, b"\0" * 7), "not inside the file"),
        (file_of({"a": entry(0, 8), "b": entry(4, 12)}, b"\0" * 12), "overlaps"),
        (file_of({"a": entry(8, 0)}, b"\0" * 8), "overlaps"),
        (file_of({"a": entry(0, 8, [3])}, b"\0" * 8), "bytes for"),
        (file_of({"a": entry(0, 8, [2**40, 2**40])}, b"\0" * 8), "bytes for"),
        (file_of({"a\x1b[2J": entry(0, 8, dtype="\x1b[2J")}, b"\0" * 8), "bytes for"),
        (file_of({"a": entry(0, 8, dtype="F32")}, b"\0" * 8), "integers are read"),
        (file_of({"a": entry(0, 0, [0])} | {"b": entry(0, 0, [0], "F32")}), "of type F32"),
    ],
)
def test_what_is_not_consistent_is_refused(content: bytes, why: str, tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=why) as refused:
        read(tmp_path / "x.safetensors", content)
    assert str(refused.value).isprintable()
