"""Importance matrices of llama.cpp, counts of one calibration, and GGUF, which holds them."""

import math
import struct
from pathlib import Path

import pytest

from microscope_tui.extensions.dumps import imatrix as reader
from microscope_tui.extensions.dumps.imatrix import GgufHeader, ImatrixReader
from microscope_tui.sources.dumps import opened
from microscope_tui.sources.reader import Record, SourceRequest, Unreadable
from tests.peers import test_imatrix as peer
from tests.peers.test_imatrix import CHUNKS, EXPERTS, GOLDEN, LAYERS, TOP_K
from tests.sources.gguf_bytes import file_of, imatrix, tensor, text, value
from tests.sources.reading import counts_of, drained, header_of, model_of, settle

COUNTS = "blk.{}.ffn_{}_exps.weight.counts"


def read(path: Path, asked: SourceRequest | None = None) -> list[Record]:
    return drained(ImatrixReader(path, "calibrated", asked or SourceRequest()))


def matrix(folder: Path, rows: dict[str, list[float]], *sizes: int, **more: int) -> Path:
    path = folder / "x.gguf"
    path.write_bytes(imatrix(rows, *sizes, **more))
    return settle(path)


def test_the_golden_file_of_the_gguf_package_gives_its_counts_once_a_layer(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(GOLDEN.read_bytes())
    settle(path)
    records = read(path)
    assert counts_of(records) == {1: {f"L{layer}": peer.counts_of(layer) for layer in LAYERS}}
    assert header_of(records)["source"] == {"writer": "imatrix", "counts": "exact"}
    assert header_of(records)["profile"] == "eval"
    model = model_of(records)
    assert (model["layers"], model["num_experts"], model["top_k"]) == ([*LAYERS], EXPERTS, TOP_K)
    assert records[1]["tokens"] == CHUNKS * peer.CHUNK_SIZE


def test_a_last_layer_that_saw_fewer_tokens_has_a_number_of_its_own(tmp_path: Path) -> None:
    rows = {COUNTS.format(layer, "up"): [4.0, 6.0, 10.0] for layer in range(2)}
    path = matrix(tmp_path, rows | {COUNTS.format(2, "up"): [1.0, 2.0, 3.0]}, 1, 10)
    records = read(path)
    assert model_of(records)["top_k"] == 2
    assert (records[1]["tokens"], records[1]["router"]["tokens"]) == (10, [10, 10, 3])


@pytest.mark.parametrize(("chunks", "size"), [(0, 0), (1, 7), (1, 1000)])
def test_k_is_unknown_where_tokens_do_not_give_it(tmp_path: Path, chunks: int, size: int) -> None:
    path = matrix(tmp_path, {COUNTS.format(0, "gate"): [4.0, 6.0, 10.0]}, chunks, size)
    assert model_of(read(path)).get("top_k") is None
    assert "tokens" not in read(path)[-1]
    assert model_of(read(path, SourceRequest(top_k=2)))["top_k"] == 2


@pytest.mark.parametrize(
    ("name", "row", "why"),
    [
        *((COUNTS.format(0, "up"), [1.0, bad], "not counts") for bad in (-1.0, math.nan, math.inf)),
        (COUNTS.format(0, "up"), [1.0, 2.0**53], "not counts"),
        (COUNTS.format(4096, "up"), [1.0, 2.0], "not counts"),
        (COUNTS.format(0, "up"), [0.0, 0.4], "no MoE layers"),
        ("blk.0.ffn_up.weight.counts", [5.0], "no MoE layers"),
    ],
)
def test_numbers_that_are_no_counts_of_experts_are_refused(
    name: str, row: list[float], why: str, tmp_path: Path
) -> None:
    with pytest.raises(Unreadable, match=why):
        read(matrix(tmp_path, {name: row}))


def gguf_of(path: Path, content: bytes) -> GgufHeader:
    path.write_bytes(content)
    with opened(path) as data:
        return reader.read_header(data)


CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def test_values_of_every_type_are_read(tmp_path: Path) -> None:
    raw = {kind: bytes(range(200, 200 + struct.calcsize(code))) for kind, code in CODES.items()}
    values = [value(str(kind), kind, raw[kind]) for kind in CODES]
    values.append(value("text", 8, text("ü")))
    values.append(value("texts", 9, struct.pack("<IQ", 8, 2) + text("a") + text("")))
    values.append(value("numbers", 9, struct.pack("<IQ3h", 3, 3, 1, -2, 3)))
    found = gguf_of(tmp_path / "x.gguf", file_of(*values)).values
    expected = {str(k): struct.unpack(f"<{code}", raw[k])[0] for k, code in CODES.items()}
    assert found == expected | {"text": "ü", "texts": ["a", ""], "numbers": [1, -2, 3]}


def test_tensors_begin_at_the_alignment_that_the_file_names(tmp_path: Path) -> None:
    for alignment, values in ((32, ()), (256, (value("general.alignment", 4, b"\0\1\0\0"),))):
        head = file_of(*values, tensors=(tensor("a", (1, 3)), tensor("b", (2,), offset=alignment)))
        start = -(-len(head) // alignment) * alignment
        body = head.ljust(start, b"\0") + struct.pack("<3f", 1, 2, 3).ljust(alignment, b"\0")
        path = tmp_path / "x.gguf"
        found = gguf_of(path, body + struct.pack("<2f", 4, 5))
        with opened(path) as data:
            assert reader.float32(data, found, "a") == [1, 2, 3]
            assert reader.float32(data, found, "b") == [4, 5]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"GGML" + b"\0" * 20, "not a GGUF file"),
        (file_of(version=2), "version 2"),
        (b"GGUF\0\0\0\3" + b"\0" * 16, "version 50331648"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40), "at most 65,536 and 16,384"),
        (file_of(value("a", 13, b"")), "unknown type 13"),
        (file_of(value("a", 9, struct.pack("<IQ", 9, 1))), "an array of 1 elements of type 9"),
        (file_of(value("a", 9, struct.pack("<IQ", 0, 1 << 60))), "at most 1,024 are read"),
        (file_of(value("a", 8, struct.pack("<Q", 1 << 60))), "not inside"),
        (file_of(value("a", 4, b"\1")), "not inside"),
        (file_of(tensors=(tensor("a", (1,) * 5),)), "has 5 dimensions"),
        (file_of(value("general.alignment", 4, b"\0" * 4)), "general.alignment is 0"),
    ],
)
def test_what_the_format_forbids_is_refused(content: bytes, why: str, tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=why) as refused:
        gguf_of(tmp_path / "x.gguf", content)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("shape", "kind", "why"),
    [((3,), 1, "is not F32"), ((1 << 62, 8), 0, "more than"), ((64,), 0, "not inside")],
)
def test_a_tensor_outside_the_file_or_of_another_type_is_refused(
    shape: tuple[int, ...], kind: int, why: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.gguf"
    found = gguf_of(path, file_of(tensors=(tensor("a", shape, kind),)))
    with opened(path) as data, pytest.raises(Unreadable, match=why):
        reader.float32(data, found, "a")
