"""The golden importance matrix, written by the ``gguf`` package of llama.cpp."""

from pathlib import Path

import pytest

GOLDEN = Path(__file__).resolve().parents[1] / "sources" / "golden" / "imatrix.gguf"
LAYERS, EXPERTS, TOP_K, CHUNKS, CHUNK_SIZE = (1, 2, 4), 8, 2, 3, 64


def counts_of(layer: int) -> list[int]:
    mean = TOP_K * CHUNKS * CHUNK_SIZE // EXPERTS
    return [mean + layer * (2 * expert - EXPERTS + 1) for expert in range(EXPERTS)]


def write(path: Path) -> None:
    """As ``common_imatrix_save`` of llama.cpp does, with its keys and shapes."""
    gguf = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")
    writer = gguf.GGUFWriter(str(path), "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["/data/wiki.train.raw"])
    writer.add_uint32("imatrix.chunk_count", CHUNKS)
    writer.add_uint32("imatrix.chunk_size", CHUNK_SIZE)
    dense = numpy.ones((1, 4), dtype=numpy.float32)
    writer.add_tensor("blk.0.ffn_down.weight.in_sum2", dense)
    writer.add_tensor("blk.0.ffn_down.weight.counts", dense[:, :1])
    for layer in LAYERS:
        counts = numpy.array(counts_of(layer), dtype=numpy.float32).reshape(EXPERTS, 1)
        for part in ("down", "gate", "up"):
            name = f"blk.{layer}.ffn_{part}_exps.weight"
            writer.add_tensor(f"{name}.in_sum2", numpy.ones((EXPERTS, 4), dtype=numpy.float32))
            writer.add_tensor(f"{name}.counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_golden_file_is_what_the_gguf_package_writes_today(tmp_path: Path) -> None:
    write(tmp_path / "imatrix.gguf")
    assert (tmp_path / "imatrix.gguf").read_bytes() == GOLDEN.read_bytes()
