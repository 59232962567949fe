"""Claims of ranks about the parts of a checkpoint that each of them writes and reads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from moe_model import CheckpointError, LanguageModel
from moe_model.training.checkpoint import (
    load_shards,
    optimizer_state,
    refuse_impossible,
    save_shards,
)
from moe_model.training.options import Options
from moe_model.training.parallel import parallelize, whole_weights
from moe_model.training.step import make_optimizer
from moe_model.training.world import RankLostError, World
from tests.training.ranks import KINDS, Claim, by_name, make_model, train_step, whole


def state_of(
    world: World, kind: Any = "fsdp", experts: int = 1
) -> tuple[LanguageModel, Any, dict[str, Tensor]]:
    """A model, its optimizer, and all that a checkpoint would hold of them and more."""
    model = make_model(small=True)
    parallelize(model, kind, world, experts)
    optimizer = make_optimizer(model, Options(lr=1e-2))
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


def wrong_bits(state: dict[str, Tensor]) -> list[str]:
    expected = truth(state)
    found = {name: whole(tensor.detach()) for name, tensor in state.items()}
    return [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])]


def two_ranks_save_their_shards(world: World, folder: Path) -> None:
    save_truth(state_of(world)[2], folder / "shards")


def save_truth(state: dict[str, Tensor], folder: Path) -> None:
    for name, tensor in truth(state).items():
        target: Any = state[name].detach()
        if isinstance(target, DTensor):
            parts = distribute_tensor(tensor, target.device_mesh, target.placements)
            target.to_local().copy_(parts.to_local())
        else:
            target.copy_(tensor)
    assert wrong_bits(state) == []
    save_shards(folder, state)


def every_layout_reads_the_shards_of_any_other_and_of_one_rank(world: World, folder: Path) -> None:
    """Each part is written once: the files hold as many numbers as one process would write."""
    kinds = [(kind, size) for kind in KINDS for size in (1, 2, 4) if world.size % size == 0]
    states = {f"{kind}-{size}": state_of(world, kind, size)[2] for kind, size in kinds}
    for name, state in states.items():
        save_truth(state, folder / f"{world.size}-{name}")
    numbers = sum(tensor.numel() for tensor in state.values())
    if world.is_main:
        save_file(truth(state), folder / "model-whole.safetensors")
    world.barrier()
    for source in [*folder.glob("[24]-*-[124]"), folder]:
        found = 0
        for file in source.glob("*.safetensors"):
            with safe_open(file, "pt") as opened:
                found += sum(opened.get_tensor(key).numel() for key in opened.keys())  # noqa: SIM118
        assert found == numbers, source
        for name, (kind, size) in zip(states, kinds, strict=True):
            state = state_of(world, kind, size)[2]
            load_shards(source, state)
            assert wrong_bits(state) == [], (name, source)


def three_ranks_load_the_shards_of_two_bit_for_bit(world: World, folder: Path) -> None:
    """Weights, moments, the scalar ``step``, int64, uint8 and bf16."""
    _, _, state = state_of(world)
    assert len(wrong_bits(state)) > 80
    load_shards(folder / "shards", state)
    assert wrong_bits(state) == []
    assert sum(isinstance(tensor, DTensor) for tensor in state.values()) > 60


def a_rank_that_cannot_write_fails_all(world: World, folder: Path) -> None:
    _, _, state = state_of(world)
    target = folder / "unwritable"
    if world.is_main:
        (target / "shard-00002-model-00001-of-00001.safetensors").mkdir(parents=True)
    world.barrier()
    with pytest.raises(OSError, match="cannot be written: rank 1: IsADirectoryError"):
        save_shards(target, state)


def a_part_with_negative_squares_is_refused_on_all_ranks_by_rank_file_and_tensor(
    world: World, folder: Path
) -> None:
    _, _, state = state_of(world)
    name = "optimizer.norm.weight.exp_avg_sq"
    moment: Any = state[name]
    moment.to_local().fill_(-float(world.rank))
    save_shards(folder / "negative", state)
    load_shards(folder / "negative", state)
    message = rf"negative: {name} in shard-\S+, shard-\S+ has NaN or negative numbers"
    kind = RankLostError if world.is_main else CheckpointError
    with (
        pytest.raises(kind, match=f"^rank 1 of 2: .*{message}" if world.is_main else message),
        world.together(),
    ):
        refuse_impossible(folder / "negative", state)


def three_ranks_resume_a_run_of_two(world: World, folder: Path) -> None:
    """Two ranks make two steps, save, and make one more; three load and make that one."""
    model, optimizer, _ = state_of(world)
    state = {**model.state_dict(), **optimizer_state(model, optimizer)}
    if world.size == 2:
        for _ in range(2):
            train_step(model, model, optimizer, world)
        save_shards(folder / "resumed", state)
    else:
        load_shards(folder / "resumed", state)
    train_step(model, model, optimizer, world)
    weights = whole_weights(model, world)
    if world.is_main and world.size == 2:
        torch.save(weights, folder / "weights.pt")
    elif world.is_main:
        torch.testing.assert_close(weights, torch.load(folder / "weights.pt"), rtol=0, atol=1e-4)


CLAIMS: dict[int, dict[str, Claim]] = {
    2: by_name(
        two_ranks_save_their_shards,
        every_layout_reads_the_shards_of_any_other_and_of_one_rank,
        a_rank_that_cannot_write_fails_all,
        a_part_with_negative_squares_is_refused_on_all_ranks_by_rank_file_and_tensor,
        three_ranks_resume_a_run_of_two,
    ),
    3: by_name(three_ranks_load_the_shards_of_two_bit_for_bit, three_ranks_resume_a_run_of_two),
}
READS = by_name(every_layout_reads_the_shards_of_any_other_and_of_one_rank)
