"""Several processes, one model: gradients, sums and lost ranks.

``ranks_together.py`` beside this file is what the ranks do, over gloo on this machine; here is what
they must have seen.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.distributed as dist

from moe_model import UsageError
from moe_model.training import (
    SHARDED_SAMPLE_TOKENS,
    RankLostError,
    World,
    distributed,
    join_world,
    launched,
    lost_ranks,
    parallelize,
)
from tests.forked import ForkServer
from tests.training.worlds import CPU, Seen, make_model, seen_by

Claim = Callable[[str], Seen]


@pytest.fixture(scope="module")
def claim(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Claim:
    """What the ranks of a claim saw."""

    @cache
    def seen(name: str) -> Seen:
        return seen_by(fork_server, "ranks_together", name, tmp_path_factory.mktemp(name))

    return seen


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
    claim: Claim, place: str
) -> None:
    """Two micro-batches, multi-token prediction, a loss times the number of ranks: plain sums."""
    size, kind = place.split("-", 1)
    ranks = [claim("gradients")[f"gradients-{size}-{rank}"][kind] for rank in range(int(size))]
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
    claim: Claim,
) -> None:
    first, second = (claim("small")[f"early-2-{rank}"] for rank in range(2))
    assert first["ddp"] != second["ddp"]
    assert first["fsdp"] is None  # kept whole where nobody looks, until it is shared
    assert second["fsdp"] is None


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_forward_pass_leaves_the_bias_of_every_rank_alone(claim: Claim, kind: str) -> None:
    for rank in range(2):
        seen = claim("small")[f"buffers-2-{rank}"][kind]
        assert seen["bias"] == [[float(rank)] * 5] * 3
        assert seen["bias_dtype"] == "torch.float32"


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_after_an_evaluation_parameters_are_those_of_the_optimizer(claim: Claim, kind: str) -> None:
    first, second = (claim("small")[f"buffers-2-{rank}"][kind] for rank in range(2))
    assert first["same_parameters"]
    assert second["same_parameters"]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_rank_0_alone_gets_the_whole_weights(claim: Claim, kind: str) -> None:
    first, second = (claim("small")[f"buffers-2-{rank}"][kind] for rank in range(2))
    assert first["whole_weights"]["embed_tokens.weight"] == [29, 16]
    assert first["whole_weights"]["layers.1.mlp.experts.gate_up_proj"] == [5, 16, 16]
    assert second["whole_weights"] == {}


def test_a_process_on_its_own_trains_the_model_as_it_is() -> None:
    model = make_model()
    assert parallelize(model, "fsdp", World()) is model


# ---- one sum over ranks -----------------------------------------------------------------------


@pytest.mark.parametrize("place", ["2-0", "2-1", "3-0", "3-2"])
def test_one_sum_brings_all_counts_to_all_ranks(claim: Claim, place: str) -> None:
    seen = claim("small")[f"sums-{place}"]
    assert seen["collectives"] == 1
    assert seen["counts"] == seen["expected_counts"]
    assert max(map(max, seen["counts"])) > 2**51  # far beyond what fp32 tells apart
    assert seen["tokens"][0] == seen["tokens"][1]
    for name, values in seen["expected_router"].items():
        assert seen["router"][name] == pytest.approx(values, rel=1e-5), name
    assert seen["router"]["max_logit"] == seen["expected_router"]["max_logit"]  # a maximum, no sum


def test_what_rides_along_is_summed_too(claim: Claim) -> None:
    for size, ranks in ((2, range(2)), (3, range(3))):
        for rank in ranks:
            assert claim("small")[f"sums-{size}-{rank}"]["extra"] == [size * 0.5, 1.0]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_square_norms_add_up_to_the_norms_of_whole_gradients(claim: Claim, kind: str) -> None:
    for rank in range(2):
        seen = claim("small")[f"one_norm-2-{rank}"][kind]
        assert seen["found"] == pytest.approx(seen["expected"], rel=1e-6)
        assert seen["found"][0] == 0.0  # no gradient
        assert min(seen["found"][1:]) > 0


def test_all_ranks_hear_what_rank_0_says(claim: Claim) -> None:
    for rank in range(3):
        seen = claim("small")[f"sums-3-{rank}"]
        assert seen["text"] == "räume räume räume "
        assert seen["empty"] == ""
        assert seen["any"] == [True, False]


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
    claim: Claim, place: str, said: str
) -> None:
    seen = claim("lost")[f"lost-{place}"]
    assert said in seen["error"]
    assert "another rank no longer responds" in seen["error"]
    assert "start again with --resume auto" in seen["error"]
    assert seen["seconds"] < 20


def test_a_rank_alone_reports_the_address_it_waited_at(claim: Claim) -> None:
    error = claim("lost")["alone-2-1"]["error"]
    assert error.startswith("rank 1 of 2: ")
    assert "MASTER_ADDR=127.0.0.1" in error


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


def test_ranks_wait_for_honest_work_longer_than_for_a_step(claim: Claim) -> None:
    for rank in range(2):
        seen = claim("patience")[f"patient-2-{rank}"]
        assert seen["in step"]
        assert seen["seconds"] > 4 > 2 * 1.5  # twice 2.5 s, where a step may wait 1.5 s


def test_a_rank_that_dies_at_its_own_work_ends_those_that_wait_for_it(claim: Claim) -> None:
    for rank in (1, 2):
        seen = claim("lost")[f"lost_alone-3-{rank}"]
        assert f"rank {rank} of 3: another rank no longer responds" in seen["error"]
        assert seen["seconds"] < 10


def test_a_sharded_model_writes_its_sample_without_becoming_whole(claim: Claim) -> None:
    first, second = (claim("patience")[f"samples-2-{rank}"] for rank in range(2))
    assert first["found"] == second["found"] == first["expected"]
    assert len(first["found"]) == SHARDED_SAMPLE_TOKENS
    assert first["built"] == second["built"] == 0
    assert first["local_rows"] == first["rows"] / 2
    assert first["training"]


def test_a_model_on_the_cpu_is_sharded_over_a_mesh_of_the_cpu(alone: pytest.MonkeyPatch) -> None:
    """Without a mesh ``fully_shard`` takes the accelerator's, where the machine has one."""
    meshes = []
    alone.setattr(distributed, "fully_shard", lambda module, **given: meshes.append(given["mesh"]))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    for name, value in {**place, "RANK": "0", "WORLD_SIZE": "1"}.items():
        alone.setenv(name, value)
    with join_world(CPU) as world:
        parallelize(make_model(small=True), "fsdp", world)
    assert [mesh.device_type for mesh in meshes] == ["cpu"] * 3


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
        ({"RANK": "first", "WORLD_SIZE": "2"}, "RANK='first' is not a number"),
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


WAITS = """
from torch import device
from moe_model.training import join_world
from moe_model.training import StopRequest
with StopRequest(), join_world(device("cpu")):
    pass
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_rank_that_waits_for_the_others(
    number: signal.Signals, fork_server: ForkServer
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    rank = fork_server.start("-c", WAITS, **place, **world)
    deadline = time.monotonic() + 60
    while not listens(port):
        assert rank.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)
    rank.send_signal(number)
    assert rank.wait(timeout=5) == -number


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
