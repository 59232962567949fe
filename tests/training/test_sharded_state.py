"""State that is spread over ranks, on disk: what two ranks wrote, read by one process.

``shards.py`` beside this file holds what ranks must find.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from moe_model import CheckpointError
from moe_model.training.checkpoint import has_training_state, load_shards, save_shards
from tests.training.shards import wrong_bits


@pytest.fixture
def shards(ranks: Callable[[str], Path]) -> Path:
    return ranks("together") / "shards"


def into_of(folder: Path) -> dict[str, torch.Tensor]:
    """Empty plain tensors for all that is in ``folder``, which two ranks wrote."""
    shapes: dict[str, Any] = {}
    for path in sorted(folder.glob("shard*")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # not a mapping
                part = file.get_tensor(name)
                if name in shapes and part.dim():
                    part = torch.cat((shapes[name], part))
                shapes[name] = part
    return {name: torch.zeros_like(tensor) for name, tensor in shapes.items()}


def test_two_ranks_write_a_file_each_and_nothing_that_is_pickled(shards: Path) -> None:
    files = sorted(path.name for path in shards.iterdir())
    assert files == [f"shard-0000{n}-model-00001-of-00001.safetensors" for n in (1, 2)]
    rows = []
    for name in files:
        with safe_open(shards / name, "pt") as file:
            rows.append(file.get_slice("optimizer.embed_tokens.weight.exp_avg").get_shape()[0])
    assert sorted(rows) == [14, 15]
    assert has_training_state(shards)
    assert not has_training_state(shards.parent)


def test_a_process_without_a_group_reads_the_shards_of_two(shards: Path, tmp_path: Path) -> None:
    """Beside them lie the weights, in a file of their own."""
    folder = Path(shutil.copytree(shards, tmp_path / "shards"))
    save_file({"other": torch.ones(3)}, folder / "model.safetensors")
    into = into_of(folder)
    assert len(wrong_bits(into)) > 80
    load_shards(folder, into)
    assert wrong_bits(into) == []


@pytest.mark.parametrize("harm", ["first shard gone", "cut short", "no header", "empty folder"])
def test_a_damaged_shard_is_an_error_never_a_gap(shards: Path, tmp_path: Path, harm: str) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / "shards"))
    first, second = sorted(folder.glob("shard*"))
    if harm in ("first shard gone", "empty folder"):
        first.unlink()
    if harm == "empty folder":
        second.unlink()
    if harm == "cut short":
        first.write_bytes(first.read_bytes()[:-8])
    if harm == "no header":
        first.write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match="use another checkpoint"):
        load_shards(folder, into_of(shards))


def test_a_file_that_was_never_a_shard_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "shard-x.safetensors", {"DCP_SHARDING_INFO": "{"})
    with pytest.raises(CheckpointError, match="use another checkpoint"):
        load_shards(tmp_path, {"a": torch.zeros(3)})


@pytest.mark.parametrize(
    ("into", "message"),
    [
        ({"a": torch.zeros(3)}, r"int64 for a, which is \(3,\) in torch.float32"),
        ({"b": torch.zeros(3)}, "nothing for b"),
        ({"a": torch.zeros(1, 3, dtype=torch.int64)}, r"which is \(1, 3\)"),
    ],
)
def test_numbers_of_another_kind_or_shape_are_not_converted(
    tmp_path: Path, into: dict[str, torch.Tensor], message: str
) -> None:
    save_shards(tmp_path, {"a": torch.arange(3)})
    with pytest.raises(CheckpointError, match=message):
        load_shards(tmp_path, into)
