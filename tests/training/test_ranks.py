"""Several processes, one model: steps, sums, shards, faults and lost ranks.

``worlds.py`` beside this file starts the ranks, over gloo on this machine; ``shards.py`` has what
they must find of the state that is spread over them.
"""

import json
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file

from moe_model import CheckpointError, UsageError
from moe_model.training import parallel
from moe_model.training.checkpoint import has_training_state, load_shards, save_shards
from moe_model.training.parallel import parallelize
from moe_model.training.world import RankLostError, World, agree, join_world, launched, lost_ranks
from tests.forked import ForkServer, free_port
from tests.training.losing_ranks import APART
from tests.training.ranks import CPU, make_model
from tests.training.shards import wrong_bits
from tests.training.story import wait_until
from tests.training.worlds import TOGETHER

CLAIMS = [(size, name) for size, claims in TOGETHER.items() for name in claims]


def check(folder: Path, world: str, claim: str, ranks_left: int) -> None:
    """Every rank that is left must have found ``claim`` true."""
    files = sorted(folder.glob(f"{world}-*.json"))
    assert len(files) == ranks_left
    failures = [json.loads(file.read_text("utf-8"))[claim] for file in files]
    assert not any(failures), "\n".join(failures)


@pytest.mark.parametrize(("size", "claim"), CLAIMS, ids=lambda value: str(value))
def test_ranks_together(ranks: Callable[..., Path], size: int, claim: str) -> None:
    check(ranks("together"), str(size), claim, size)


@pytest.mark.parametrize("claim", APART)
def test_ranks_that_lose_one(ranks: Callable[..., Path], claim: str) -> None:
    check(ranks("apart"), claim, claim, APART[claim][0] - 1)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_process_without_a_launcher_is_a_world_of_one(alone: pytest.MonkeyPatch) -> None:
    assert not launched()
    model = make_model(small=True)
    with join_world(CPU) as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        tensor = torch.ones(2)
        world.sum(tensor)
        world.barrier()
        assert tensor.tolist() == [1.0, 1.0]
        assert world.broadcast_text("as it is") == "as it is"
        assert not dist.is_initialized()
        assert parallelize(model, "fsdp", world) is model


def test_a_process_without_a_launcher_raises_its_own_error() -> None:
    error = OSError("disk")
    for block in (World().together, World().main_first):
        with pytest.raises(OSError, match="disk") as caught, block():
            raise error
        assert caught.value is error
    agree(World(), {"--lr": "0.1"})


def test_a_model_on_the_cpu_is_sharded_over_a_mesh_of_the_cpu(alone: pytest.MonkeyPatch) -> None:
    """Without a mesh ``fully_shard`` takes the accelerator's, where the machine has one."""
    meshes = []
    alone.setattr(parallel, "fully_shard", lambda module, **given: meshes.append(given["mesh"]))
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in {**place, "RANK": "0", "WORLD_SIZE": "1"}.items():
        alone.setenv(name, value)
    with join_world(CPU) as world:
        parallelize(make_model(small=True), "fsdp", world)
    assert [mesh.device_type for mesh in meshes] == ["cpu"] * 3


def test_a_rank_that_is_not_a_number_is_a_usage_error(alone: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "first", "WORLD_SIZE": "2"}.items():
        alone.setenv(name, value)
    assert launched()
    with pytest.raises(UsageError, match="RANK='first' is not a number"), join_world(CPU):
        pass


def test_a_rank_that_waits_in_vain_for_others_names_the_address(alone: pytest.MonkeyPatch) -> None:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in {**place, "RANK": "1", "WORLD_SIZE": "2"}.items():
        alone.setenv(name, value)
    with pytest.raises(RankLostError, match="not all ranks joined") as caught, join_world(CPU, 0.1):
        pass
    assert str(caught.value).startswith("rank 1 of 2: ")
    assert "MASTER_ADDR=127.0.0.1 MASTER_PORT=1" in str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_rank_that_waits_for_others(number: Any, fork_server: ForkServer) -> None:
    waits = (
        "from torch import device; from moe_model.training.world import join_world\n"
        "from moe_model.training.signals import StopRequest\n"
        "with StopRequest(), join_world(device('cpu')):\n"
        "    pass"
    )
    port = free_port()
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    rank = fork_server.start("-c", waits, **place, RANK="0", LOCAL_RANK="0", WORLD_SIZE="2")

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(port))) == 0

    wait_until(listens, rank)
    rank.send_signal(number)
    assert rank.wait(timeout=5) == -number


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
    with pytest.raises(RankLostError, match="no longer responds") as caught, lost_ranks():
        raise error
    assert caught.value.__cause__ is error
    assert "gloo/transport" not in str(caught.value)


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
