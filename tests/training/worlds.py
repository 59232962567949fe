"""Worlds for the tests: ranks that are forked by a process of their own, and what they work on.

A claim runs worlds of some sizes; what a rank returns is kept by ``WORK-SIZE-RANK``.
"""

from __future__ import annotations

import json
import os
import socket
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

from microscope_tui.probe import RoutingCounter
from moe_model import LanguageModel, ModelConfig, update_expert_bias
from moe_model.training import World, gradient_squares, join_world, synchronised
from tests.forked import ForkServer

CPU = torch.device("cpu")
SEQUENCES, LENGTH = 12, 10
Seen = dict[str, Any]
Work = Callable[[World, Path], Seen]


def whole(tensor: Tensor) -> Tensor:
    """All of ``tensor``; gathering a DTensor is a collective."""
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full


def seen_by(server: ForkServer, ranks: str, claim: str, folder: Path) -> Seen:
    """Run ``claim`` of the module ``ranks`` beside this one in ``folder``: what its ranks saw."""
    program = server.start("-m", f"tests.training.{ranks}", claim, str(folder))
    errors = program.communicate(timeout=300)[1]
    assert program.returncode == 0, errors
    assert "Traceback" not in errors, errors
    return {path.stem: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")}


def world_of(size: int, work: Work, folder: Path, timeout_s: float = 30.0) -> None:
    """Fork ``size`` ranks that do ``work``, and wait for them."""
    fork_ranks(size, lambda rank: _one_rank(work, folder, rank, size, timeout_s))


def fork_ranks(size: int, one_rank: Callable[[int], int]) -> list[int]:
    """Fork ``size`` processes with the environment of ranks; the exit codes, in their order."""
    import_module("torch._dynamo")  # an optimizer imports it, which takes a second: once for all
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank))
            os._exit(_code_of(one_rank, rank))
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _code_of(one_rank: Callable[[int], int], rank: int) -> int:
    """As the interpreter would have it: a forked child must not run on into its parent's code."""
    try:
        return one_rank(rank)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1


def _one_rank(work: Work, folder: Path, rank: int, size: int, timeout_s: float) -> int:
    with join_world(CPU, timeout_s) as world:
        seen = work(world, folder)
    name = f"{work.__name__}-{size}-{rank}.json"
    (folder / name).write_text(json.dumps(seen), "utf-8")
    return 0


def make_model(*, tied: bool = False, small: bool = False) -> LanguageModel:
    """A few thousand parameters; 5 experts and 29 tokens divide by no number of ranks here."""
    config = ModelConfig(
        vocab_size=29, hidden_size=16, num_hidden_layers=2 if small else 3, first_k_dense_replace=1,
        intermediate_size=24, moe_intermediate_size=8, n_routed_experts=5, n_shared_experts=1,
        num_experts_per_tok=2, num_attention_heads=2, kv_lora_rank=8, qk_nope_head_dim=4,
        qk_rope_head_dim=4, v_head_dim=4, max_position_embeddings=32, tie_word_embeddings=tied,
        num_nextn_predict_layers=0 if small else 1,
    )  # fmt: skip
    model = LanguageModel(config)
    model.init_weights(torch.Generator().manual_seed(0))
    return model.train()


def all_sequences() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 29, (SEQUENCES, LENGTH + 2), generator=generator)


def loss_of(
    forward: Callable[..., Any], ids_BN: Tensor, counter: RoutingCounter | None = None
) -> Tensor:
    """This part's share of the mean over all sequences; its routings are counted."""
    output = forward(ids_BN[:, :LENGTH], next_ids=ids_BN[:, 1:-1])
    if counter is not None:
        counter.add(output.routings)
    next_ids, after = ids_BN[:, 1:-1].flatten(), ids_BN[:, 2:].flatten()
    total = F.cross_entropy(output.logits_BSV.flatten(0, 1), next_ids, reduction="sum")
    for logits_BSV in output.ahead_logits:
        total = total + 0.3 * F.cross_entropy(logits_BSV.flatten(0, 1), after, reduction="sum")
    return total / (SEQUENCES * LENGTH)


def train_step(
    model: LanguageModel, forward: Callable[..., Any], optimizer: Any, world: World
) -> tuple[dict[str, Tensor], float, list[list[int]]]:
    """One step in two micro-batches; gradients before clipping, whole, their norm, and counts."""
    counter = RoutingCounter(model.routers)
    own_AB = all_sequences().view(2, world.size, -1, LENGTH + 2)[:, world.rank]
    for place, ids_BN in enumerate(own_AB):
        with synchronised(forward, last=place == 1):
            (loss_of(forward, ids_BN, counter) * world.size).backward()
    gradients = {
        name: whole(parameter.grad).clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    norm = counter.all_reduce(world, gradient_squares(model, world))[-1].sqrt()
    torch.nn.utils.clip_grads_with_norm_(model.parameters(), 0.1, norm)
    optimizer.step()
    optimizer.zero_grad()
    update_expert_bias(model.routers, counter.counts, 0.01)
    return gradients, norm.item(), counter.counts.tolist()


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
