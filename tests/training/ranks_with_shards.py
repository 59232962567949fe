"""What ranks see that save and load: ``python -m tests.training.ranks_with_shards all FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from moe_model import LanguageModel
from moe_model.training import (
    World,
    load_shards,
    make_optimizer,
    optimizer_state,
    parallelize,
    save_shards,
)
from tests.training.worlds import make_model, train_step, whole, world_of


def state_of(world: World) -> tuple[LanguageModel, Any, dict[str, Tensor]]:
    """A model, its optimizer, and all that a checkpoint would hold of them and more."""
    model = make_model(small=True)
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
    if world.is_main:  # what else may lie in a folder, and what a single process writes
        (folder / "plain").mkdir()
        save_file(truth(state), folder / "plain" / "training.safetensors")
        save_file({"other": torch.ones(3)}, folder / "shards" / "model.safetensors")
    files = sorted(path.name for path in (folder / "shards").glob("shard*"))
    return {"files": files, "names": sorted(state), "wrong": wrong_bits(state)}


def loaded(world: World, folder: Path) -> dict[str, Any]:
    _, _, state = state_of(world)
    empty = wrong_bits(state)
    load_shards(folder / "shards", state)
    shared = sum(hasattr(tensor, "to_local") for tensor in state.values())
    _, _, again = state_of(world)
    load_shards(folder / "plain", again)
    return {
        "wrong_before": len(empty),
        "wrong": wrong_bits(state),
        "wrong_from_one_file": wrong_bits(again),
        "shared": shared,
    }


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


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[2])
    world_of(2, saved, folder)
    for size in (1, 3, 4):
        world_of(size, loaded, folder)
    world_of(2, unwritable, folder)
    for size in (2, 3):
        world_of(size, resumed, folder)
