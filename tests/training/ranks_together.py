"""What ranks see that train together: ``python -m tests.training.ranks_together CLAIM FOLDER``."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from microscope_tui.probe import RoutingCounter
from moe_model import LanguageModel, Routing
from moe_model.sampling import generate
from moe_model.training import (
    SHARDED_SAMPLE_TOKENS,
    RankLostError,
    World,
    join_world,
    lost_ranks,
    make_optimizer,
    parallelize,
    square_norms,
    synchronised,
    whole_weights,
)
from moe_model.training.console import sample
from tests.training.worlds import (
    CPU,
    Work,
    all_sequences,
    distance,
    loss_of,
    make_model,
    train_step,
    whole,
    world_of,
)

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
    expected, expected_norm, expected_counts = train_step(alone, alone, optimizer, World())
    if world.rank:
        model.norm.weight.data.fill_(7.0)  # the weights of rank 0 are what counts
    model.recompute = "recompute" in more
    forward = parallelize(model, kind, world)
    found, norm, counts = train_step(model, forward, make_optimizer(model, 1e-2), world)
    weights = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    return {
        "same_names": found.keys() == expected.keys(),
        "error": max(distance(found[name], expected[name]) for name in expected),
        "norm": [norm, expected_norm],
        "weight_error": max(distance(weights[n], t) for n, t in alone.state_dict().items()),
        "counts": counts,
        "expected_counts": expected_counts,
        "bias": [router.expert_bias.tolist() for router in model.routers],
        "expected_bias": [router.expert_bias.tolist() for router in alone.routers],
        "weights": {name: tensor.tolist() for name, tensor in weights.items()},
    }


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


LAYERS, EXPERTS, TOKENS = 2, 5, 6
TIMEOUT_S, PATIENT_S = 1.5, 2.5
"""What a rank of ``patient`` waits in a step, and how long another one works by itself."""
HANGS_S = 5.5
"""How long a rank hangs; the others wait for it, and for it to join, a little less."""


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
    """What all ranks counted, in one collective."""
    routers = make_model().routers[:LAYERS]
    counter, together = RoutingCounter(routers), RoutingCounter(routers)
    for rank in range(world.size):
        together.add(routings_of(rank))
    counter.add(routings_of(world.rank))
    for each, count in (
        (counter, 2**52 // world.size),
        (together, 2**52 // world.size * world.size),
    ):
        each._calls.tallies[0].counts_LE2[0, 0] += count
    collectives = []
    sum_before = World.sum
    World.sum = lambda self, tensor: (collectives.append(1), sum_before(self, tensor))[1]  # type: ignore[method-assign]
    extra = torch.tensor([0.5, float(world.rank == 1)], dtype=torch.float64)
    summed = counter.all_reduce(world, extra)
    World.sum = sum_before  # type: ignore[method-assign]
    together.all_reduce(World(), extra)
    line, expected = (one.record(one.read(), [1.0] * LAYERS) for one in (counter, together))
    return {
        "collectives": len(collectives),
        "extra": summed.tolist(),
        "counts": counter.counts.tolist(),
        "expected_counts": together.counts.tolist(),
        "tokens": [line["tokens"], expected["tokens"]],
        "router": line["router"],
        "expected_router": expected["router"],
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


def patient(world: World, folder: Path) -> dict[str, Any]:
    """One rank after the other works alone for longer than a step may take."""
    started = time.monotonic()
    with world.main_first():
        if world.is_main:
            time.sleep(PATIENT_S)
    with world.together():
        if world.rank == 1:
            time.sleep(PATIENT_S)
    return {"seconds": time.monotonic() - started, "in step": world.any(world.rank == 1)}


def lost_alone(world: World, folder: Path) -> dict[str, Any]:
    """Rank 0 dies of its own work while the others wait for it without a limit."""
    world.barrier()  # all have joined
    started = time.monotonic()
    try:
        with lost_ranks(), world.main_first():
            os.kill(os.getpid(), signal.SIGKILL)
    except RankLostError as error:
        return {"error": str(error), "seconds": time.monotonic() - started}
    return {"error": "", "seconds": 0.0}


def samples(world: World, folder: Path) -> dict[str, Any]:
    """What a sharded model writes, how many models that needs, and the mesh it lies on."""
    model = make_model(tied=True)
    prompt_S = torch.tensor([1, 2, 3])
    expected = generate(model, prompt_S, max_new_tokens=SHARDED_SAMPLE_TOKENS, seed=7)
    parallelize(model, "fsdp", world)
    shown = SimpleNamespace(
        model=model, world=world, options=SimpleNamespace(parallel="fsdp", seed=7),
        prompt="", stop_ids=(),
        corpus=SimpleNamespace(tokenizer=SimpleNamespace(encode=lambda _: prompt_S, decode=list)),
    )  # fmt: skip
    built, before = [], LanguageModel.__init__
    LanguageModel.__init__ = lambda *given: (built.append(1), before(*given))[1]  # type: ignore[method-assign]
    found = sample(shown)  # type: ignore[arg-type]
    LanguageModel.__init__ = before  # type: ignore[method-assign]
    weight = model.layers[0].mlp.up_proj.weight
    return {
        "expected": expected,
        "found": found,
        "built": len(built),
        "local_rows": weight.to_local().shape[0],
        "rows": weight.shape[0],
        "training": model.training,
    }


def alone_of_two(rank: int, folder: Path) -> None:
    """One rank of a world of two, whose other rank is never started."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="1", WORLD_SIZE="2", RANK=str(rank))
    error = ""
    try:
        with join_world(CPU, 1.0):
            pass
    except RankLostError as lost_error:
        error = str(lost_error)
    (folder / f"alone-2-{rank}.json").write_text(json.dumps({"error": error}), "utf-8")


def _leave(how: str) -> None:
    if how == "hung":
        time.sleep(HANGS_S)
        os._exit(1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    claim, folder = sys.argv[1], Path(sys.argv[2])
    if claim == "gradients":
        for size in KINDS:
            world_of(size, gradients, folder)
    elif claim == "small":
        for work in (sums, one_norm, early, buffers):
            world_of(2, work, folder)
        world_of(3, sums, folder)
    elif claim == "lost":
        world_of(2, lost("killed-ddp"), folder)
        world_of(3, lost("killed-fsdp"), folder)
        world_of(2, lost("hung"), folder, timeout_s=HANGS_S - 1.5)
        world_of(3, lost_alone, folder)
        alone_of_two(1, folder)
    elif claim == "patience":
        world_of(2, patient, folder, timeout_s=TIMEOUT_S)
        world_of(2, samples, folder)
