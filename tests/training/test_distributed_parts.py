"""Several processes, one model: sums, shares, shards and lost ranks.

``ranks.py`` beside this file is what the ranks do, over gloo on this machine; here is what they
must have seen.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file

from moe_model.command import UsageError
from moe_model.config import ModelConfig
from moe_model.model import LanguageModel
from moe_model.store import CheckpointError
from moe_model.training.distributed import (
    RankLostError,
    World,
    join_world,
    launched,
    lost_ranks,
)
from moe_model.training.optimizer import make_optimizer
from moe_model.training.parallel import parallelize
from moe_model.training.sharded import is_sharded, load_shards, optimizer_state, save_shards

CPU = torch.device("cpu")
RANKS = Path(__file__).with_name("ranks.py")
ROOT = Path(__file__).resolve().parents[2]
Seen = dict[str, Any]


@pytest.fixture(scope="module")
def claim(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Seen]]:
    """What the ranks of a claim saw, by ``WORK-SIZE-RANK``, and the folder they worked in."""
    done: dict[str, tuple[Path, Seen]] = {}

    def run(name: str) -> tuple[Path, Seen]:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            command = [sys.executable, "-W", "error", str(RANKS), name, str(folder)]
            env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
            assert ended.returncode == 0, ended.stderr
            assert "Traceback" not in ended.stderr, ended.stderr
            seen = {p.stem: json.loads(p.read_text("utf-8")) for p in folder.glob("*.json")}
            done[name] = (folder, seen)
        return done[name]

    return run


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No launcher has set anything."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


# ---- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["1-fsdp", "2-ddp", "2-fsdp", "2-ddp recompute", "2-fsdp recompute tied", "3-ddp",
              "3-fsdp"],
)  # fmt: skip
def test_ranks_together_do_the_step_of_one_process_on_the_whole_batch(
    claim: Callable[[str], tuple[Path, Seen]], place: str
) -> None:
    """Two micro-batches, multi-token prediction, a loss times the number of ranks: plain sums."""
    size, kind = place.split("-", 1)
    ranks = [claim("gradients")[1][f"gradients-{size}-{rank}"][kind] for rank in range(int(size))]
    for seen in ranks:
        norm, expected = seen["norm"]
        assert seen["same_names"]
        assert seen["error"] < 1e-6
        assert norm == pytest.approx(expected, rel=1e-6)
        assert expected > 0.1  # so that clipping has something to do
        assert seen["weight_error"] < 1e-4  # Adam divides by the gradient's own size
        assert seen["counts"] == seen["expected_counts"]
        assert seen["bias"] == seen["expected_bias"]
        assert seen["weights"] == ranks[0]["weights"]  # to the last bit


def test_ranks_do_not_talk_before_the_last_micro_batch(
    claim: Callable[[str], tuple[Path, Seen]],
) -> None:
    first, second = (claim("small")[1][f"early-2-{rank}"] for rank in range(2))
    assert first["ddp"] != second["ddp"]
    assert first["fsdp"] is None  # kept whole where nobody looks, until it is shared
    assert second["fsdp"] is None


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_forward_pass_leaves_the_bias_of_every_rank_alone(
    claim: Callable[[str], tuple[Path, Seen]], kind: str
) -> None:
    for rank in range(2):
        seen = claim("small")[1][f"buffers-2-{rank}"][kind]
        assert seen["bias"] == [[float(rank)] * 5] * 3
        assert seen["bias_dtype"] == "torch.float32"


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_after_an_evaluation_parameters_are_those_of_the_optimizer(
    claim: Callable[[str], tuple[Path, Seen]], kind: str
) -> None:
    first, second = (claim("small")[1][f"buffers-2-{rank}"][kind] for rank in range(2))
    assert first["same_parameters"]
    assert second["same_parameters"]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_rank_0_alone_gets_the_whole_weights(
    claim: Callable[[str], tuple[Path, Seen]], kind: str
) -> None:
    first, second = (claim("small")[1][f"buffers-2-{rank}"][kind] for rank in range(2))
    assert first["whole_weights"]["embed_tokens.weight"] == [29, 16]
    assert first["whole_weights"]["layers.1.mlp.experts.gate_up_proj"] == [5, 16, 16]
    assert second["whole_weights"] == {}


def test_several_processes_need_to_be_told_how_to_share(tiny: ModelConfig) -> None:
    with pytest.raises(UsageError, match=r"2 processes .* add --parallel ddp, or --parallel fsdp"):
        parallelize(LanguageModel(tiny), None, World(rank=0, size=2))


def test_a_process_on_its_own_trains_the_model_as_it_is(tiny: ModelConfig) -> None:
    model = LanguageModel(tiny)
    assert parallelize(model, "fsdp", World()) is model


# ---- one sum over ranks -----------------------------------------------------------------------


@pytest.mark.parametrize("place", ["2-0", "2-1", "3-0", "3-2"])
def test_one_sum_brings_all_readings_to_all_ranks(
    claim: Callable[[str], tuple[Path, Seen]], place: str
) -> None:
    seen = claim("small")[1][f"sums-{place}"]
    assert seen["collectives"] == 1
    assert seen["counts"] == seen["expected_counts"]
    assert max(map(max, seen["counts"])) > 2**51  # far beyond what fp32 tells apart
    assert seen["tokens"][0] == seen["tokens"][1]
    for name, values in seen["expected_router"].items():
        assert seen["router"][name] == pytest.approx(values, rel=1e-5), name
    assert seen["router"]["max_logit"] == seen["expected_router"]["max_logit"]  # a maximum, no sum


def test_what_rides_along_is_summed_too(claim: Callable[[str], tuple[Path, Seen]]) -> None:
    for size, ranks in ((2, range(2)), (3, range(3))):
        for rank in ranks:
            assert claim("small")[1][f"sums-{size}-{rank}"]["extra"] == [size * 0.5, 1.0]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_square_norms_add_up_to_the_norms_of_whole_gradients(
    claim: Callable[[str], tuple[Path, Seen]], kind: str
) -> None:
    for rank in range(2):
        seen = claim("small")[1][f"one_norm-2-{rank}"][kind]
        assert seen["found"] == pytest.approx(seen["expected"], rel=1e-6)
        assert seen["found"][0] == 0.0  # no gradient
        assert min(seen["found"][1:]) > 0


def test_all_ranks_hear_what_rank_0_says(claim: Callable[[str], tuple[Path, Seen]]) -> None:
    for rank in range(3):
        seen = claim("small")[1][f"sums-3-{rank}"]
        assert seen["text"] == "räume räume räume "
        assert seen["empty"] == ""
        assert seen["any"] == [True, False]


# ---- shards -----------------------------------------------------------------------------------


def test_two_ranks_write_a_file_each_and_nothing_that_is_pickled(
    claim: Callable[[str], tuple[Path, Seen]],
) -> None:
    folder, seen = claim("shards")
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
    claim: Callable[[str], tuple[Path, Seen]], size: int
) -> None:
    """Weights, moments, the scalar ``step``, int64, uint8 and bf16."""
    seen = claim("shards")[1]
    for rank in range(size):
        read = seen[f"loaded-{size}-{rank}"]
        assert read["wrong_before"] > 200
        assert read["wrong"] == []
        assert read["shared"] > 100


def test_three_ranks_go_on_where_two_were(claim: Callable[[str], tuple[Path, Seen]]) -> None:
    seen = claim("shards")[1]
    for rank in range(3):
        for name, values in seen["resumed-2-0"].items():
            found = torch.tensor(seen[f"resumed-3-{rank}"][name])
            torch.testing.assert_close(found, torch.tensor(values), rtol=0, atol=1e-4)


def test_a_rank_that_cannot_write_fails_all(claim: Callable[[str], tuple[Path, Seen]]) -> None:
    for rank in range(2):
        error = claim("shards")[1][f"unwritable-2-{rank}"]["error"]
        assert "cannot be written: rank 1: IsADirectoryError" in error


def into_of(folder: Path) -> dict[str, torch.Tensor]:
    """Empty plain tensors for all that is in ``folder``, which two ranks wrote."""
    shapes: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                part = file.get_tensor(name)
                if name in shapes and part.dim():
                    part = torch.cat((shapes[name], part))
                shapes[name] = part
    return {name: torch.zeros_like(tensor) for name, tensor in shapes.items()}


def test_one_process_without_any_group_reads_the_shards_of_two(
    claim: Callable[[str], tuple[Path, Seen]],
) -> None:
    folder, seen = claim("shards")
    into = into_of(folder / "shards")
    assert sorted(into) == seen["saved-2-0"]["names"]
    load_shards(folder / "shards", into)
    for path in (folder / "shards").iterdir():
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
    claim: Callable[[str], tuple[Path, Seen]], tmp_path: Path, harm: str
) -> None:
    whole_folder = claim("shards")[0] / "shards"
    folder = Path(shutil.copytree(whole_folder, tmp_path / "shards"))
    first, second = sorted(folder.iterdir())
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


def test_the_state_of_an_optimizer_can_be_filled_before_its_first_step(tiny: ModelConfig) -> None:
    """Made beforehand or by the first step: the same state, and the same weights after it."""
    models = [LanguageModel(tiny) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [make_optimizer(model, 1e-2) for model in models]
    assert not optimizers[1].state
    made = optimizer_state(models[1], optimizers[1])
    ids_BS = torch.randint(0, tiny.vocab_size, (2, 8))
    for model, optimizer in zip(models, optimizers, strict=True):
        model(ids_BS).logits_BSV.square().mean().backward()
        optimizer.step()
    kept = optimizer_state(models[0], optimizers[0])
    assert kept.keys() == made.keys()
    for name, tensor in kept.items():
        assert torch.equal(made[name], tensor), name
        assert (made[name].dtype, made[name].device) == (tensor.dtype, tensor.device)


def test_an_optimizer_of_other_parameters_is_refused(tiny: ModelConfig) -> None:
    optimizer = make_optimizer(LanguageModel(tiny), 1e-2)
    with pytest.raises(ValueError, match=r"embed_tokens.weight, are not the optimizer's"):
        optimizer_state(LanguageModel(tiny), optimizer)


# ---- worlds and lost ranks --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("killed-ddp-2-0", "rank 0 of 2"),
        ("killed-fsdp-3-0", "rank 0 of 3"),
        ("killed-fsdp-3-2", "rank 2 of 3"),
        ("hung-2-0", "Timed out"),
    ],
)
def test_a_rank_that_dies_or_hangs_is_noticed_by_the_others(
    claim: Callable[[str], tuple[Path, Seen]], place: str, said: str
) -> None:
    seen = claim("lost")[1][f"lost-{place}"]
    assert said in seen["error"]
    assert "another rank no longer answers" in seen["error"]
    assert "start again with --resume auto" in seen["error"]
    assert seen["seconds"] < 20


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)"),
        RuntimeError("[enforce fail at gloo/transport/tcp/pair.cc:456] op.preamble.length <= 4"),
        RuntimeError("Connection closed by peer"),
        torch.OutOfMemoryError("CUDA out of memory."),
        OSError("No space left on device"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_pass_unchanged(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, lost_ranks():
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/p/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:1. GLHF"),
        RuntimeError("[/p/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 9ms for recv"),
        dist.DistBackendError("NCCL error: remote process exited"),
        dist.DistNetworkError("The client socket has timed out after 3s"),
        dist.DistStoreError("wait timeout after 3000ms"),
    ],
)
def test_broken_and_silent_connections_are_lost_ranks(error: RuntimeError) -> None:
    with pytest.raises(RankLostError, match="no longer answers") as caught, lost_ranks():
        raise error
    assert caught.value.__cause__ is error
    assert "gloo/transport" not in str(caught.value)


def test_a_process_that_was_started_by_hand_is_a_world(alone: pytest.MonkeyPatch) -> None:
    assert not launched()
    with join_world(CPU) as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        tensor = torch.ones(2)
        world.sum(tensor)
        world.barrier()
        assert tensor.tolist() == [1.0, 1.0]
        assert world.broadcast_text("as it is") == "as it is"
        assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
        ({"RANK": "first", "WORLD_SIZE": "2"}, "RANK='first' is no number"),
    ],
)
def test_half_a_launcher_is_a_usage_error(
    alone: pytest.MonkeyPatch, environment: dict[str, str], said: str
) -> None:
    for name, value in environment.items():
        alone.setenv(name, value)
    assert launched()
    with pytest.raises(UsageError, match=said), join_world(CPU):
        pass


@pytest.fixture
def tiny() -> ModelConfig:
    return ModelConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=2, first_k_dense_replace=1,
        intermediate_size=8, moe_intermediate_size=4, n_routed_experts=4, n_shared_experts=1,
        num_experts_per_tok=2, num_attention_heads=1, kv_lora_rank=4, qk_nope_head_dim=4,
        qk_rope_head_dim=4, v_head_dim=4, max_position_embeddings=16,
    )  # fmt: skip
