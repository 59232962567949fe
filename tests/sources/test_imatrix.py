"""Importance matrices of llama.cpp: counts per expert of one calibration."""

import struct
from pathlib import Path

import pytest

from microscope_tui.sources import ImatrixReader, Record, SourceRequest, Unreadable
from tests.peers.test_imatrix import CHUNK_SIZE, CHUNKS, EXPERTS, GOLDEN, LAYERS, TOP_K
from tests.peers.test_imatrix import counts_of as written_counts
from tests.sources.gguf_bytes import imatrix
from tests.sources.reading import (
    counts_of,
    drained,
    header_of,
    model_of,
    settle,
)

recognises = ImatrixReader.recognises

COUNTS = "blk.{}.ffn_{}_exps.weight.counts"


def read(path: Path, asked: SourceRequest | None = None) -> list[Record]:
    return drained(ImatrixReader(path, "calibrated", asked or SourceRequest()))


def matrix(
    folder: Path, rows: dict[str, list[float]], chunks: int = 0, size: int = 0, datasets: int = 1
) -> Path:
    path = folder / "x.gguf"
    path.write_bytes(imatrix(rows, chunks, size, datasets))
    return settle(path)


def test_the_golden_file_of_the_gguf_package_gives_its_counts_once_per_layer(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(GOLDEN.read_bytes())
    settle(path)
    records = read(path)
    assert counts_of(records) == {1: {f"L{layer}": written_counts(layer) for layer in LAYERS}}
    assert header_of(records)["source"] == {
        "writer": "imatrix",
        "counts": "exact",
        "note": "calibrated on wiki.train.raw",
    }
    assert header_of(records)["profile"] == "eval"
    model = model_of(records)
    assert (model["layers"], model["num_experts"], model["top_k"]) == ([*LAYERS], EXPERTS, TOP_K)
    assert records[1]["tokens"] == CHUNKS * CHUNK_SIZE


def test_a_last_layer_that_saw_fewer_tokens_has_a_number_of_its_own(tmp_path: Path) -> None:
    rows = {COUNTS.format(layer, "up"): [4.0, 6.0, 10.0] for layer in range(2)}
    path = matrix(tmp_path, rows | {COUNTS.format(2, "up"): [1.0, 2.0, 3.0]}, 1, 10)
    records = read(path)
    assert model_of(records)["top_k"] == 2
    assert (records[1]["tokens"], records[1]["router"]["tokens"]) == (10, [10, 10, 3])


@pytest.mark.parametrize(("chunks", "size"), [(0, 0), (1, 7), (1, 1000)])
def test_k_is_unknown_where_the_tokens_do_not_give_it(
    tmp_path: Path, chunks: int, size: int
) -> None:
    path = matrix(tmp_path, {COUNTS.format(0, "gate"): [4.0, 6.0, 10.0]}, chunks, size)
    assert model_of(read(path)).get("top_k") is None
    assert "tokens" not in read(path)[-1]
    assert model_of(read(path, SourceRequest(top_k=2)))["top_k"] == 2


def test_counts_that_float32_rounds_are_marked(tmp_path: Path) -> None:
    path = matrix(tmp_path, {COUNTS.format(0, "gate"): [2.0**25, 1.0]}, datasets=5)
    assert header_of(read(path))["source"]["note"] == (
        "calibrated on 000, 001, 002 …; counts above 16,777,216 are rounded to float32"
    )


def test_the_legacy_format_is_recognised_and_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    name = b"blk.0.ffn_down_exps.weight"
    entry = struct.pack("<i", len(name)) + name + struct.pack("<ii4f", 5, 4, 1, 2, 3, 4)
    path.write_bytes(struct.pack("<i", 1) + entry + struct.pack("<ii", 5, 3) + b"a.b")
    settle(path)
    assert recognises(path)
    with pytest.raises(Unreadable, match="one count per tensor, not per expert; compute it again"):
        read(path)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), 1e30])
def test_numbers_that_are_no_counts_are_refused(tmp_path: Path, bad: float) -> None:
    path = matrix(tmp_path, {COUNTS.format(0, "up"): [1.0, bad]})
    with pytest.raises(Unreadable, match="not counts"):
        read(path)


def test_a_matrix_of_a_dense_model_says_that_there_are_no_experts(tmp_path: Path) -> None:
    path = matrix(tmp_path, {"blk.0.ffn_up.weight.counts": [5.0]})
    with pytest.raises(Unreadable, match="no MoE layers"):
        read(path)
