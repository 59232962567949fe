"""Ranks for the tests: ``ranks.py CLAIM FOLDER`` runs them and writes what they saw as JSON.

torch is imported once, then the ranks are forked: seconds instead of seconds a rank. A claim runs
worlds of some sizes; what a rank returns goes to ``FOLDER/WORK-SIZE-RANK.json``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # an optimizer imports it, and it takes a second: once, before the forks
import torch.nn.functional as F
from torch import Tensor

from moe_model.balance import update_expert_bias
from moe_model.config import ModelConfig
from moe_model.model import LanguageModel
from moe_model.readings import RouterReadings
from moe_model.router import Routing
from moe_model.training.distributed import RankLostError, World, join_world, lost_ranks
from moe_model.training.optimizer import make_optimizer
from moe_model.training.parallel import (
    clip_gradients,
    parallelize,
    square_norms,
    synchronised,
    total_grad_norm,
    whole,
    whole_weights,
)
from moe_model.training.sharded import load_shards, optimizer_state, save_shards

CPU = torch.device("cpu")
SEQUENCES, LENGTH = 12, 10
Work = Callable[[World, Path], dict[str, Any]]


def world_of(size: int, work: Work, folder: Path, timeout_s: float = 30.0) -> None:
    """Fork ``size`` ranks that do ``work``, and wait for them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank))
            os._exit(_one_rank(work, folder, rank, size, timeout_s))
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


def _one_rank(work: Work, folder: Path, rank: int, size: int, timeout_s: float) -> int:
    try:
        with join_world(CPU, timeout_s) as world:
            seen = work(world, folder)
        name = f"{work.__name__}-{size}-{rank}.json"
        (folder / name).write_text(json.dumps(seen), "utf-8")
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


# ---- gradients --------------------------------------------------------------------------------


def make_model(*, tied: bool = False) -> LanguageModel:
    """A few thousand parameters; 5 experts and 29 tokens divide by no number of ranks here."""
    config = ModelConfig(
        vocab_size=29, hidden_size=16, num_hidden_layers=3, first_k_dense_replace=1,
        intermediate_size=24, moe_intermediate_size=8, n_routed_experts=5, n_shared_experts=1,
        num_experts_per_tok=2, num_attention_heads=2, kv_lora_rank=8, qk_nope_head_dim=4,
        qk_rope_head_dim=4, v_head_dim=4, max_position_embeddings=32, tie_word_embeddings=tied,
        num_nextn_predict_layers=1,
    )  # fmt: skip
    model = LanguageModel(config)
    model.init_weights(torch.Generator().manual_seed(0))
    return model.train()


def all_sequences() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 29, (SEQUENCES, LENGTH + 2), generator=generator)


def loss_of(forward: Callable[..., Any], ids_BN: Tensor) -> Tensor:
    """This part's share of the mean over all sequences."""
    output = forward(ids_BN[:, :LENGTH], next_ids=ids_BN[:, 1:-1])
    next_ids, after = ids_BN[:, 1:-1].flatten(), ids_BN[:, 2:].flatten()
    total = F.cross_entropy(output.logits_BSV.flatten(0, 1), next_ids, reduction="sum")
    ahead = F.cross_entropy(output.ahead_logits[0].flatten(0, 1), after, reduction="sum")
    return (total + 0.3 * ahead) / (SEQUENCES * LENGTH)


def train_step(
    model: LanguageModel, forward: Callable[..., Any], optimizer: Any, world: World
) -> tuple[dict[str, Tensor], float]:
    """One step in two micro-batches; the gradients before clipping, whole, and their norm."""
    model.readings.reset()
    own_AB = all_sequences().view(2, world.size, -1, LENGTH + 2)[:, world.rank]
    for place, ids_BN in enumerate(own_AB):
        with synchronised(forward, last=place == 1):
            (loss_of(forward, ids_BN) * world.size).backward()
    gradients = {
        name: whole(parameter.grad).clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    norm = total_grad_norm(model, world)
    model.readings.all_reduce(world, torch.zeros(1, dtype=torch.float64))
    clip_gradients(model, 0.1, norm)
    optimizer.step()
    optimizer.zero_grad()
    update_expert_bias(model.routers, model.readings.counts_LE, 0.01)
    return gradients, norm.item()


KINDS = {
    1: ["fsdp"],
    2: ["ddp", "fsdp", "ddp recompute", "fsdp recompute tied"],
    3: ["ddp", "fsdp"],
}


def gradients(world: World, folder: Path) -> dict[str, Any]:
    """Each kind against a single process that reads all sequences."""
    return {kind: one_kind(world, *kind.split()) for kind in KINDS[world.size]}


def one_kind(world: World, kind: Any, *more: str) -> dict[str, Any]:
    alone, model = (make_model(tied="tied" in more) for _ in range(2))
    optimizer = make_optimizer(alone, 1e-2)
    expected, expected_norm = train_step(alone, alone, optimizer, World())
    if world.rank:
        model.norm.weight.data.fill_(7.0)  # the weights of rank 0 are what counts
    model.recompute = "recompute" in more
    forward = parallelize(model, kind, world)
    found, norm = train_step(model, forward, make_optimizer(model, 1e-2), world)
    weights = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    return {
        "same_names": found.keys() == expected.keys(),
        "error": max(distance(found[name], expected[name]) for name in expected),
        "norm": [norm, expected_norm],
        "weight_error": max(distance(weights[n], t) for n, t in alone.state_dict().items()),
        "counts": model.readings.counts_LE.tolist(),
        "expected_counts": alone.readings.counts_LE.tolist(),
        "bias": [router.expert_bias.tolist() for router in model.routers],
        "expected_bias": [router.expert_bias.tolist() for router in alone.routers],
        "weights": {name: tensor.tolist() for name, tensor in weights.items()},
    }


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def buffers(world: World, folder: Path) -> dict[str, Any]:
    """A bias that differs between ranks, which it never should, is left alone; evaluation too."""
    seen: dict[str, Any] = {}
    for kind in ("ddp", "fsdp"):
        model = make_model()
        forward = parallelize(model, kind, world)
        parameters = dict(model.named_parameters())
        for router in model.routers:
            router.expert_bias.fill_(float(world.rank))
        with synchronised(forward, last=True):
            loss_of(forward, all_sequences()[:2]).backward()
        model.eval()
        with torch.no_grad():
            loss_of(forward, all_sequences()[:2])
        same = all(parameters[name] is p for name, p in model.named_parameters())
        kept = whole_weights(model, world)
        seen[kind] = {
            "bias": [router.expert_bias.tolist() for router in model.routers],
            "bias_dtype": str(model.routers[0].expert_bias.dtype),
            "same_parameters": same,
            "whole_weights": {name: list(tensor.shape) for name, tensor in kept.items()},
        }
    return seen


# ---- one sum over ranks -----------------------------------------------------------------------

LAYERS, EXPERTS, TOKENS = 2, 5, 6


def routings_of(rank: int) -> list[Routing]:
    generator = torch.Generator().manual_seed(rank)
    found = []
    for _ in range(LAYERS):
        logits_TE = torch.randn(TOKENS, EXPERTS, generator=generator) * (1 + rank)
        scores_TE = logits_TE.sigmoid()
        weights_TK, ids_TK = scores_TE.topk(2)
        kept_TK = torch.rand(TOKENS, 2, generator=generator) > 0.3
        margin_T = torch.rand(TOKENS, generator=generator)
        found.append(Routing(logits_TE, scores_TE, ids_TK, weights_TK, margin_T, kept_TK))
    return found


def sums(world: World, folder: Path) -> dict[str, Any]:
    """The readings of all ranks in one collective."""
    readings, together = RouterReadings(), RouterReadings()
    for rank in range(world.size):
        together.add(routings_of(rank))
    readings.add(routings_of(world.rank))
    readings.counts_LE[0, 0] += 2**52 // world.size
    together.counts_LE[0, 0] += 2**52 // world.size * world.size
    collectives = []
    sum_before = World.sum
    World.sum = lambda self, tensor: (collectives.append(1), sum_before(self, tensor))[1]  # type: ignore[method-assign]
    extra = torch.tensor([0.5, float(world.rank == 1)], dtype=torch.float64)
    summed = readings.all_reduce(world, extra)
    World.sum = sum_before  # type: ignore[method-assign]
    routers = make_model().routers[:LAYERS]
    report, expected = readings.report(routers), together.report(routers)
    return {
        "collectives": len(collectives),
        "extra": summed.tolist(),
        "counts": readings.counts_LE.tolist(),
        "expected_counts": together.counts_LE.tolist(),
        "tokens": [report.tokens, expected.tokens],
        "router": report.router,
        "expected_router": expected.router,
        "text": world.broadcast_text("räume " * 3 if world.is_main else "not this"),
        "empty": world.broadcast_text("" if world.is_main else "not this"),
        "any": [world.any(world.rank == 1), world.any(False)],
    }


def early(world: World, folder: Path) -> dict[str, Any]:
    """What a rank's gradient is after a micro-batch that is not the last."""
    seen = {}
    for kind in ("ddp", "fsdp"):
        model = make_model()
        forward = parallelize(model, kind, world)
        with synchronised(forward, last=False):
            loss_of(forward, all_sequences()[world.rank :: world.size]).backward()
        gradient = model.norm.weight.grad
        seen[kind] = None if gradient is None else gradient.tolist()
    return seen


def one_norm(world: World, folder: Path) -> dict[str, Any]:
    """What ranks add to a squared norm, shared or whole on each."""
    seen = {}
    for kind in ("ddp", "fsdp"):
        model = make_model()
        forward = parallelize(model, kind, world)
        with synchronised(forward, last=True):
            loss_of(forward, all_sequences()).backward()
        squares = square_norms([None, *(router.weight.grad for router in model.routers)], world)
        world.sum(squares)
        norms = [whole(router.weight.grad).norm().item() for router in model.routers]
        seen[kind] = {"found": squares.sqrt().tolist(), "expected": [0.0, *norms]}
    return seen


# ---- shards -----------------------------------------------------------------------------------


def state_of(world: World | None) -> tuple[LanguageModel, Any, dict[str, Tensor]]:
    """A model, its optimizer, and all that a checkpoint would hold of them and more."""
    model = make_model()
    if world is not None:
        parallelize(model, "fsdp", world)
    optimizer = make_optimizer(model, 1e-2)
    state = {**model.state_dict(), **optimizer_state(model, optimizer)}
    state["more.int64"] = torch.zeros(3, dtype=torch.int64)
    state["more.uint8"] = torch.zeros(256, dtype=torch.uint8)
    state["more.bf16"] = torch.zeros(2, 3, dtype=torch.bfloat16)
    state["more.scalar"] = torch.zeros((), dtype=torch.float64)
    return model, optimizer, state


def truth(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the tensors of ``state`` hold in the checkpoint, whole: random bits, by name."""
    found = {}
    for place, (name, tensor) in enumerate(sorted(state.items())):
        generator = torch.Generator().manual_seed(place)
        if tensor.dtype in (torch.int64, torch.uint8):
            high = 255 if tensor.dtype == torch.uint8 else 2**62
            found[name] = torch.randint(high, tensor.shape, dtype=tensor.dtype, generator=generator)
        else:
            numbers = torch.randn(tensor.shape, dtype=torch.float64, generator=generator)
            found[name] = numbers.to(tensor.dtype)
    return found


def fill(state: dict[str, Tensor]) -> None:
    """Put the truth into ``state``, into shares as well."""
    for name, tensor in truth(state).items():
        target = state[name].detach()
        if hasattr(target, "to_local"):
            rows = split_rows(tensor, target)
            target.to_local().copy_(rows)
        else:
            target.copy_(tensor)


def split_rows(tensor: Tensor, like: Any) -> Tensor:
    """The rows of ``tensor`` that this rank holds of ``like``."""
    mesh = like.device_mesh
    parts = torch.chunk(tensor, mesh.size())
    place = mesh.get_local_rank()
    return parts[place] if place < len(parts) else tensor[:0]


def wrong_bits(state: dict[str, Tensor]) -> list[str]:
    expected = truth(state)
    return [
        name
        for name, tensor in state.items()
        if not torch.equal(whole(tensor.detach()), expected[name])
    ]


def saved(world: World, folder: Path) -> dict[str, Any]:
    _, _, state = state_of(world)
    fill(state)
    save_shards(folder / "shards", state)
    files = sorted(path.name for path in (folder / "shards").iterdir())
    return {"files": files, "names": sorted(state), "wrong": wrong_bits(state)}


def loaded(world: World, folder: Path) -> dict[str, Any]:
    _, _, state = state_of(world)
    empty = wrong_bits(state)
    load_shards(folder / "shards", state)
    shared = sum(hasattr(tensor, "to_local") for tensor in state.values())
    return {"wrong_before": len(empty), "wrong": wrong_bits(state), "shared": shared}


def unwritable(world: World, folder: Path) -> dict[str, Any]:
    """The file of one rank cannot be written: no rank may believe that it was."""
    _, _, state = state_of(world)
    target = folder / "unwritable"
    if world.is_main:
        (target / "shard-00002-model-00001-of-00001.safetensors").mkdir(parents=True)
    world.barrier()
    try:
        save_shards(target, state)
    except OSError as error:
        return {"error": str(error)}
    return {"error": ""}


def resumed(world: World, folder: Path) -> dict[str, Any]:
    """Two ranks make two steps, save, and make one more; three load and make that one."""
    target = folder / "resumed"
    model, optimizer, _ = state_of(world)
    if world.size == 2:
        for _ in range(2):
            train_step(model, model, optimizer, world)
        save_shards(target, {**model.state_dict(), **optimizer_state(model, optimizer)})
    else:
        load_shards(target, {**model.state_dict(), **optimizer_state(model, optimizer)})
    train_step(model, model, optimizer, world)
    return {name: whole(tensor).tolist() for name, tensor in model.state_dict().items()}


# ---- lost ranks -------------------------------------------------------------------------------


def lost(how: str) -> Work:
    """Rank 1 is gone in the middle of the second step; the others say so."""

    def work(world: World, folder: Path) -> dict[str, Any]:
        model = make_model()
        forward = parallelize(model, "fsdp" if how == "killed-fsdp" else "ddp", world)
        started = time.monotonic()
        try:
            with lost_ranks():
                for step in range(3):
                    loss = loss_of(forward, all_sequences())
                    if world.rank == 1 and step == 1:
                        _leave(how)
                    started = time.monotonic()
                    loss.backward()
        except RankLostError as error:
            return {"error": str(error), "seconds": time.monotonic() - started}
        return {"error": "", "seconds": time.monotonic() - started}

    work.__name__ = f"lost-{how}"
    return work


def _leave(how: str) -> None:
    if how == "hung":
        time.sleep(4)
        os._exit(1)
    os.kill(os.getpid(), signal.SIGKILL)


def run(claim: str, folder: Path) -> None:
    """All worlds of one claim, one after the other."""
    if claim == "gradients":
        for size in (1, 2, 3):
            world_of(size, gradients, folder)
    elif claim == "small":
        for work in (sums, one_norm, early, buffers):
            world_of(2, work, folder)
        world_of(3, sums, folder)
    elif claim == "shards":
        world_of(2, saved, folder)
        for size in (1, 3, 4):
            world_of(size, loaded, folder)
        world_of(2, unwritable, folder)
        for size in (2, 3):
            world_of(size, resumed, folder)
    elif claim == "lost":
        world_of(2, lost("killed-ddp"), folder)
        world_of(3, lost("killed-fsdp"), folder)
        world_of(2, lost("hung"), folder, timeout_s=2)
    else:
        raise SystemExit(f"{claim}: no such claim")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(sys.argv[1], Path(sys.argv[2]))
