"""The reader of GGUF: what the format says, and nothing beyond its limits."""

import struct
from pathlib import Path

import pytest

from microscope_tui.sources import GgufHeader, Unreadable, imatrix, opened
from tests.sources.gguf_bytes import file_of, tensor, text, value


def header_of(path: Path, content: bytes) -> GgufHeader:
    path.write_bytes(content)
    with opened(path) as data:
        return imatrix.read_header(data)


SCALARS = [
    (0, "<B", 255),
    (1, "<b", -1),
    (2, "<H", 65535),
    (3, "<h", -2),
    (4, "<I", 2**32 - 1),
    (5, "<i", -3),
    (6, "<f", 0.5),
    (7, "<?", True),
    (10, "<Q", 2**64 - 1),
    (11, "<q", -4),
    (12, "<d", 0.1),
]


@pytest.mark.parametrize("version", [2, 3])
def test_values_of_every_type_are_read(tmp_path: Path, version: int) -> None:
    values = [value(str(kind), kind, struct.pack(code, v)) for kind, code, v in SCALARS]
    values.append(value("text", 8, text("ü")))
    values.append(value("texts", 9, struct.pack("<IQ", 8, 2) + text("a") + text("")))
    values.append(value("numbers", 9, struct.pack("<IQ3h", 3, 3, 1, -2, 3)))
    found = header_of(tmp_path / "x.gguf", file_of(*values, version=version)).values
    expected = {str(kind): v for kind, _, v in SCALARS}
    assert found == expected | {"text": "ü", "texts": ["a", ""], "numbers": [1, -2, 3]}


def test_long_arrays_are_skipped_and_what_follows_is_read(tmp_path: Path) -> None:
    number = imatrix.MOST_ARRAY + 1
    values = (
        value("numbers", 9, struct.pack("<IQ", 5, number) + b"\0" * 4 * number),
        value("texts", 9, struct.pack("<IQ", 8, number) + text("token") * number),
        value("after", 4, struct.pack("<I", 7)),
    )
    assert header_of(tmp_path / "x.gguf", file_of(*values)).values == {"after": 7}


def test_tensors_begin_at_the_alignment_that_the_file_names(tmp_path: Path) -> None:
    for alignment, values in ((32, ()), (256, (value("general.alignment", 4, b"\0\1\0\0"),))):
        head = file_of(*values, tensors=(tensor("a", (1, 3)), tensor("b", (2,), offset=alignment)))
        start = -(-len(head) // alignment) * alignment
        body = head.ljust(start, b"\0") + struct.pack("<3f", 1, 2, 3).ljust(alignment, b"\0")
        path = tmp_path / "x.gguf"
        found = header_of(path, body + struct.pack("<2f", 4, 5))
        with opened(path) as data:
            assert imatrix.float32(data, found.tensors["a"], "a") == [1, 2, 3]
            assert imatrix.float32(data, found.tensors["b"], "b") == [4, 5]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"GGML" + b"\0" * 20, "not a GGUF file"),
        (file_of(version=1), "version 1"),
        (b"GGUF\0\0\0\3" + b"\0" * 16, "version 50331648"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 0), "at most 65,536"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40), "at most 65,536 and 16,384"),
        (file_of(value("a", 13, b"")), "unknown type 13"),
        (file_of(value("a", 9, struct.pack("<IQ", 9, 1))), "array of the unknown type 9"),
        (file_of(value("a", 9, struct.pack("<IQ", 0, 1 << 60))), "array of"),
        (file_of(value("a", 9, struct.pack("<IQ", 0, 9_000_000)), text("b")), "metadata at"),
        (file_of(value("a", 8, struct.pack("<Q", 1 << 60))), "a text of"),
        (file_of(struct.pack("<Q", 1 << 20)), "a text of 1,048,576 bytes"),
        (file_of(value("a", 4, b"\1")), "not inside"),
        (file_of(tensors=(tensor("a\x1b[2J", (1,) * 5),)), "has 5 dimensions"),
        (file_of(value("general.alignment", 4, b"\0" * 4)), "general.alignment is 0"),
    ],
)
def test_what_the_format_does_not_allow_is_refused(
    content: bytes, why: str, tmp_path: Path
) -> None:
    with pytest.raises(Unreadable, match=why) as refused:
        header_of(tmp_path / "x.gguf", content)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("shape", "kind", "why"),
    [((3,), 1, "is not F32"), ((1 << 62, 8), 0, "more than"), ((64,), 0, "not inside")],
)
def test_a_tensor_outside_the_file_or_of_another_type_is_refused(
    shape: tuple[int, ...], kind: int, why: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.gguf"
    found = header_of(path, file_of(tensors=(tensor("a", shape, kind),)))
    with opened(path) as data, pytest.raises(Unreadable, match=why):
        imatrix.float32(data, found.tensors["a"], "a")
