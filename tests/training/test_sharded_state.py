"""State that is spread over ranks, on disk: written by two, read by any number.

``ranks_with_shards.py`` beside this file is what the ranks do.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from moe_model import CheckpointError
from moe_model.training import is_sharded, load_shards, make_optimizer, optimizer_state, save_shards
from tests.forked import ForkServer
from tests.training.worlds import Seen, make_model, seen_by


@pytest.fixture(scope="module")
def claim(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Seen]:
    """The folder that ranks worked in, and what they saw."""
    folder = tmp_path_factory.mktemp("shards")
    return folder, seen_by(fork_server, "ranks_with_shards", "all", folder)


def test_two_ranks_write_a_file_each_and_nothing_that_is_pickled(
    claim: tuple[Path, Seen],
) -> None:
    folder, seen = claim
    files = seen["saved-2-0"]["files"]
    assert files == [f"shard-0000{n}-model-00001-of-00001.safetensors" for n in (1, 2)]
    rows = []
    for name in files:
        with safe_open(folder / "shards" / name, "pt") as file:
            rows.append(file.get_slice("optimizer.embed_tokens.weight.exp_avg").get_shape()[0])
    assert sorted(rows) == [14, 15]
    assert is_sharded(folder / "shards")
    assert not is_sharded(folder)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_shards_of_two_ranks_are_read_bit_for_bit_by_any_number(
    claim: tuple[Path, Seen], size: int
) -> None:
    """Weights, moments, the scalar ``step``, int64, uint8 and bf16; from an ordinary file too."""
    seen = claim[1]
    for rank in range(size):
        read = seen[f"loaded-{size}-{rank}"]
        assert read["wrong_before"] > 80
        assert read["wrong"] == []
        assert read["wrong_from_one_file"] == []
        assert read["shared"] > 60


def test_three_ranks_resume_a_run_of_two(claim: tuple[Path, Seen]) -> None:
    seen = claim[1]
    for rank in range(3):
        for name, values in seen["resumed-2-0"].items():
            found = torch.tensor(seen[f"resumed-3-{rank}"][name])
            torch.testing.assert_close(found, torch.tensor(values), rtol=0, atol=1e-4)


def test_a_rank_that_cannot_write_fails_all(claim: tuple[Path, Seen]) -> None:
    for rank in range(2):
        error = claim[1][f"unwritable-2-{rank}"]["error"]
        assert "cannot be written: rank 1: IsADirectoryError" in error


def into_of(folder: Path) -> dict[str, torch.Tensor]:
    """Empty plain tensors for all that is in ``folder``, which two ranks wrote."""
    shapes: dict[str, Any] = {}
    for path in sorted(folder.glob("shard*")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                part = file.get_tensor(name)
                if name in shapes and part.dim():
                    part = torch.cat((shapes[name], part))
                shapes[name] = part
    return {name: torch.zeros_like(tensor) for name, tensor in shapes.items()}


def test_one_process_without_any_group_reads_the_shards_of_two(
    claim: tuple[Path, Seen],
) -> None:
    folder, seen = claim
    into = into_of(folder / "shards")
    assert sorted(into) == seen["saved-2-0"]["names"]
    load_shards(folder / "shards", into)
    for path in (folder / "shards").glob("shard*"):
        with safe_open(path, "pt") as file:
            offsets = json.loads(file.metadata()["DCP_SHARDING_INFO"])
            for name in file.keys():  # noqa: SIM118  # no mapping
                part = file.get_tensor(name)
                first = offsets[name]["saved_offsets"][:1]
                found = into[name] if not first else into[name][first[0] : first[0] + len(part)]
                assert torch.equal(found, part), name


@pytest.mark.parametrize(
    "harm", ["first shard gone", "cut short", "no header", "empty folder"],
)  # fmt: skip
def test_a_damaged_shard_is_an_error_and_never_a_gap(
    claim: tuple[Path, Seen], tmp_path: Path, harm: str
) -> None:
    whole_folder = claim[0] / "shards"
    folder = Path(shutil.copytree(whole_folder, tmp_path / "shards"))
    first, second = sorted(folder.glob("shard*"))
    into = into_of(whole_folder)
    if harm in ("first shard gone", "empty folder"):
        first.unlink()
    if harm == "empty folder":
        second.unlink()
    if harm == "cut short":
        first.write_bytes(first.read_bytes()[:-8])
    if harm == "no header":
        first.write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match="use another checkpoint"):
        load_shards(folder, into)


def test_numbers_of_another_kind_are_not_converted(tmp_path: Path) -> None:
    save_shards(tmp_path, {"a": torch.arange(3)})
    with pytest.raises(CheckpointError, match=r"int64 for a, which is \(3,\) in torch.float32"):
        load_shards(tmp_path, {"a": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"nothing for b"):
        load_shards(tmp_path, {"b": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"which is \(1, 3\)"):
        load_shards(tmp_path, {"a": torch.zeros(1, 3, dtype=torch.int64)})


def test_a_file_that_no_shard_was_ever_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "shard-x.safetensors", {"DCP_SHARDING_INFO": "{"})
    with pytest.raises(CheckpointError, match="use another checkpoint"):
        load_shards(tmp_path, {"a": torch.zeros(3)})


def test_a_process_on_its_own_saves_what_it_reads(tmp_path: Path) -> None:
    state = {"scalar": torch.tensor(2.5), "bytes": torch.arange(9, dtype=torch.uint8)}
    save_shards(tmp_path / "new", state)
    into = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    load_shards(tmp_path / "new", into)
    assert all(torch.equal(into[name], tensor) for name, tensor in state.items())


def test_the_state_of_an_optimizer_can_be_filled_before_its_first_step() -> None:
    """Made beforehand or by the first step: the same state, and the same weights after it."""
    models = [make_model(small=True) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [make_optimizer(model, 1e-2) for model in models]
    assert not optimizers[1].state
    made = optimizer_state(models[1], optimizers[1])
    ids_BS = torch.randint(0, 29, (2, 8))
    for model, optimizer in zip(models, optimizers, strict=True):
        model(ids_BS).logits_BSV.square().mean().backward()
        optimizer.step()
    kept = optimizer_state(models[0], optimizers[0])
    assert kept.keys() == made.keys()
    for name, tensor in kept.items():
        assert torch.equal(made[name], tensor), name
        assert (made[name].dtype, made[name].device) == (tensor.dtype, tensor.device)
