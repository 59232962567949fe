"""Expert statistics of TensorRT-LLM: counts summed over ranks, iteration by iteration."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from microscope_tui.sources import Record, SourceRequest, TensorRTReader, Unreadable
from tests.sources.reading import (
    counts_of,
    drained,
    header_of,
    model_of,
    restarted,
    settle,
)

recognises = TensorRTReader.recognises

EXPERTS, K, TOKENS = 8, 2, 20
ITERATIONS, LAYERS, RANKS = range(100, 112), (1, 2, 5), 3


def chosen(rank: int) -> dict[str, torch.Tensor]:
    """``token_selected_experts`` [tokens, k] of each iteration and layer."""
    generator = torch.Generator().manual_seed(rank)
    return {
        f"{iteration}_{layer}": torch.rand(TOKENS, EXPERTS, generator=generator).topk(K).indices
        for iteration in ITERATIONS
        for layer in LAYERS
    }


def counted(ids: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As ``ExpertStatistic`` counts them."""
    return {key: value.flatten().bincount(minlength=EXPERTS) for key, value in ids.items()}


def write(folder: Path, raw: bool = False, ranks: int = RANKS) -> None:
    (folder / "meta_info.json").write_text(
        json.dumps({"num_experts": EXPERTS, "num_experts_per_token": K})
    )
    for rank in range(ranks):
        ids = chosen(rank)
        name = f"rank{rank}" + ("_raw" if raw else "")
        safetensors.torch.save_file(ids if raw else counted(ids), folder / f"{name}.safetensors")
    settle(folder)


def read(path: Path, asked: SourceRequest | None = None) -> list[Record]:
    return drained(TensorRTReader(path, "served", asked or SourceRequest()))


def expected(ranks: int = RANKS) -> dict[int, dict[str, list[int]]]:
    """The sum over ranks, as ``load_expert_statistic`` of TensorRT-LLM makes it."""
    each = [counted(chosen(rank)) for rank in range(ranks)]
    return {
        iteration + 1: {
            f"L{layer}": sum(rank[f"{iteration}_{layer}"] for rank in each).tolist()  # type: ignore[union-attr]
            for layer in LAYERS
        }
        for iteration in ITERATIONS
    }


@pytest.mark.parametrize("raw", [False, True])
def test_counts_are_summed_over_ranks_iteration_by_iteration(raw: bool, tmp_path: Path) -> None:
    write(tmp_path, raw)
    records = read(tmp_path)
    assert counts_of(records) == expected()
    assert header_of(records)["source"] == {"writer": "tensorrt-llm", "counts": "exact"}
    assert header_of(records)["profile"] == "eval"
    model = model_of(records)
    assert (model["layers"], model["num_experts"], model["top_k"]) == ([*LAYERS], EXPERTS, K)
    assert records[1]["tokens"] == TOKENS * RANKS


def test_a_rank_with_counts_and_choices_counts_once(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, raw=True)
    assert counts_of(read(tmp_path)) == expected()


def test_a_file_of_the_folder_means_the_folder(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("meta_info.json", "rank1.safetensors"):
        assert recognises(tmp_path / name)
        assert counts_of(read(tmp_path / name)) == expected()


def test_missing_ranks_are_noticed(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "rank1.safetensors").unlink()
    assert header_of(read(tmp_path))["source"]["counts"] == "local_rank"


def test_without_meta_info_k_is_the_users(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "meta_info.json").unlink()
    assert model_of(read(tmp_path)).get("top_k") is None
    assert model_of(read(tmp_path, SourceRequest(top_k=K)))["top_k"] == K
    assert counts_of(read(tmp_path)) == expected()


def test_a_rank_that_comes_late_restarts_the_reading(tmp_path: Path) -> None:
    write(tmp_path, ranks=2)
    reader = TensorRTReader(tmp_path, "served", SourceRequest())
    assert counts_of(drained(reader)) == expected(2)
    safetensors.torch.save_file(counted(chosen(2)), tmp_path / "rank2.safetensors")
    settle(tmp_path / "rank2.safetensors")
    assert counts_of(restarted(reader)) == expected()
    write(tmp_path, ranks=1)
    assert counts_of(restarted(reader)) == expected()


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("meta_info.json", b"hello", "not the meta_info.json"),
        ("meta_info.json", b'{"num_experts": 0}', "not the meta_info.json"),
        ("meta_info.json", b'{"num_experts": 4}', "8 experts, meta_info.json has 4"),
        ("rank0.safetensors", safetensors.torch.save({"w": torch.ones(2)}), "not named ITERATION"),
        ("rank0.safetensors", safetensors.torch.save({"1_9999": torch.ones(2)}), "not named"),
        ("rank0.safetensors", safetensors.torch.save({"1_1": torch.ones(2)}), "integers are read"),
        (
            "rank0.safetensors",
            safetensors.torch.save({"1_1": torch.ones(2, 2).long()}),
            "holds no counts",
        ),
        ("rank0.safetensors", safetensors.torch.save({"1_1": torch.tensor([-1])}), "no counts"),
    ],
)
def test_foreign_content_is_refused_with_a_reason(
    name: str, content: bytes, why: str, tmp_path: Path
) -> None:
    write(tmp_path)
    (tmp_path / name).write_bytes(content)
    settle(tmp_path)
    with pytest.raises(Unreadable, match=why):
        read(tmp_path)


def test_meta_info_alone_says_what_is_missing(tmp_path: Path) -> None:
    write(tmp_path, ranks=0)
    with pytest.raises(Unreadable, match="copy the files of all ranks beside it"):
        read(tmp_path)
