"""Expert statistics of TensorRT-LLM, summed over ranks, and safetensors, which holds them."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import save

from microscope_tui.extensions.dumps import tensorrt_llm
from microscope_tui.extensions.dumps.tensorrt_llm import TensorRTReader
from microscope_tui.sources import SourceRequest, Unreadable
from microscope_tui.sources.dumps import opened
from tests.sources.reading import counts_of, drained, header_of, model_of, restarted, settle

EXPERTS, K, TOKENS = 8, 2, 20
ITERATIONS, LAYERS, RANKS = range(100, 112), (1, 2, 5), 3


def chosen(rank: int) -> dict[str, torch.Tensor]:
    """``token_selected_experts`` [tokens, k] of each iteration and layer."""
    generator = torch.Generator().manual_seed(rank)
    names = [f"{iteration}_{layer}" for iteration in ITERATIONS for layer in LAYERS]
    scores = {name: torch.rand(TOKENS, EXPERTS, generator=generator) for name in names}
    return {name: value.topk(K).indices for name, value in scores.items()}


def counted(ids: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As ``ExpertStatistic`` counts them."""
    return {key: value.flatten().bincount(minlength=EXPERTS) for key, value in ids.items()}


def write(folder: Path, ranks: int = RANKS, ending: str = "") -> None:
    meta = {"num_experts": EXPERTS, "num_experts_per_token": K}
    (folder / "meta_info.json").write_text(json.dumps(meta))
    for rank in range(ranks):
        tensors = chosen(rank) if ending else counted(chosen(rank))
        safetensors.torch.save_file(tensors, folder / f"rank{rank}{ending}.safetensors")
    settle(folder)


def read(path: Path, **request: int) -> list[Any]:
    return drained(TensorRTReader(path, "served", SourceRequest(**request)))


def expected(ranks: int = RANKS) -> dict[int, dict[str, list[int]]]:
    """The sum over ranks, as ``load_expert_statistic`` of TensorRT-LLM makes it."""
    each = [counted(chosen(rank)) for rank in range(ranks)]
    total = {name: sum(rank[name] for rank in each) for name in each[0]}
    return {
        iteration + 1: {f"L{layer}": total[f"{iteration}_{layer}"].tolist() for layer in LAYERS}  # type: ignore[union-attr]
        for iteration in ITERATIONS
    }


@pytest.mark.parametrize("endings", [[""], ["_raw"], ["", "_raw"]], ids=["counts", "ids", "both"])
def test_counts_of_an_iteration_are_summed_over_ranks(endings: list[str], tmp_path: Path) -> None:
    for ending in endings:
        write(tmp_path, ending=ending)
    records = read(tmp_path)
    assert counts_of(records) == expected()
    assert header_of(records)["source"] == {"writer": "tensorrt-llm", "counts": "exact"}
    assert header_of(records)["profile"] == "eval"
    model = model_of(records)
    assert (model["layers"], model["num_experts"], model["top_k"]) == ([*LAYERS], EXPERTS, K)
    assert records[1]["tokens"] == TOKENS * RANKS


def test_a_file_of_the_folder_means_the_folder(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("meta_info.json", "rank1.safetensors"):
        assert TensorRTReader.recognises(tmp_path / name)
        assert counts_of(read(tmp_path / name)) == expected()


def test_missing_files_are_noticed(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "meta_info.json").unlink()
    assert model_of(read(tmp_path)).get("top_k") is None
    assert model_of(read(tmp_path, top_k=K))["top_k"] == K
    (tmp_path / "rank1.safetensors").unlink()
    assert header_of(read(tmp_path))["source"]["counts"] == "local_rank"


def test_a_rank_that_comes_late_restarts_the_reading(tmp_path: Path) -> None:
    write(tmp_path, 2)
    reader = TensorRTReader(tmp_path, "served", SourceRequest())
    assert counts_of(drained(reader)) == expected(2)
    safetensors.torch.save_file(counted(chosen(2)), tmp_path / "rank2.safetensors")
    settle(tmp_path / "rank2.safetensors")
    assert counts_of(restarted(reader)) == expected()
    write(tmp_path, 1)
    assert counts_of(restarted(reader)) == expected()


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("meta_info.json", b"hello", "not the meta_info.json"),
        ("meta_info.json", b'{"num_experts": 0}', "not the meta_info.json"),
        ("meta_info.json", b'{"num_experts": 4}', "8 experts, meta_info.json has 4"),
        ("rank0.safetensors", save({"w": torch.ones(2)}), "not named ITERATION"),
        ("rank0.safetensors", save({"1_9999": torch.ones(2)}), "not named"),
        ("rank0.safetensors", save({"1_1": torch.ones(2)}), "integers are read"),
        ("rank0.safetensors", save({"1_1": torch.ones(2, 2).long()}), "holds no counts"),
        ("rank0.safetensors", save({"1_1": torch.tensor([-1])}), "no counts"),
    ],
)
def test_foreign_content_is_refused(name: str, content: bytes, why: str, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / name).write_bytes(content)
    settle(tmp_path)
    with pytest.raises(Unreadable, match=why):
        read(tmp_path)


def test_the_refusal_of_meta_info_alone_names_what_is_missing(tmp_path: Path) -> None:
    write(tmp_path, 0)
    with pytest.raises(Unreadable, match="copy the files of all ranks beside it"):
        read(tmp_path)


DTYPES = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16]


def numbers_in(
    path: Path, content: bytes | None = None
) -> dict[str, tuple[tuple[int, ...], list[int]]]:
    if content is not None:
        path.write_bytes(content)
    with opened(path) as data:
        return {
            name: (tensor.shape, tensorrt_llm.integers(data, tensor, name))
            for name, tensor in tensorrt_llm.read_tensors(data).items()
        }


def safetensors_of(header: Any, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_integers_read_as_the_library_saved_them(dtype: torch.dtype, tmp_path: Path) -> None:
    shapes: list[tuple[int, ...]] = [(), (0,), (5,), (2, 3)]
    tensors = {str(shape): torch.randint(0, 100, shape).to(dtype) for shape in shapes}
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors", metadata={"by": "us"})
    assert numbers_in(tmp_path / "x.safetensors") == {
        str(shape): (shape, tensors[str(shape)].flatten().tolist()) for shape in shapes
    }


def entry(start: int, stop: int, shape: Any = (2,), dtype: str = "I32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "length of the header"),
        (struct.pack("<Q", 100) + b"{}", "not inside"),
        (safetensors_of(b"hello"), "header is damaged"),
        (safetensors_of([1]), "header is damaged"),
        (safetensors_of({"a": entry(0, 8, [-2])}, b"\0" * 8), "header is damaged"),
        (safetensors_of({"a": entry(0, 8, [1] * 17)}, b"\0" * 8), "header is damaged"),
        (safetensors_of({"a": entry(0, 8)}, b"\0" * 7), "not inside the file"),
        (safetensors_of({"a": entry(0, 8), "b": entry(4, 12)}, b"\0" * 12), "overlaps"),
        (safetensors_of({"a": entry(8, 0)}, b"\0" * 8), "overlaps"),
        (safetensors_of({"a": entry(0, 8, [3])}, b"\0" * 8), "bytes for"),
        (safetensors_of({"a": entry(0, 8, [2**40, 2**40])}, b"\0" * 8), "bytes for"),
        (safetensors_of({"a\x1b[2J": entry(0, 8, dtype="\x1b[2J")}, b"\0" * 8), "bytes for"),
        (safetensors_of({"a": entry(0, 8, dtype="F32")}, b"\0" * 8), "integers are read"),
        (safetensors_of({"a": entry(0, 0, [0])} | {"b": entry(0, 0, [0], "F32")}), "of type F32"),
    ],
)
def test_what_is_not_consistent_is_refused(content: bytes, why: str, tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=why) as refused:
        numbers_in(tmp_path / "x.safetensors", content)
    assert str(refused.value).isprintable()
