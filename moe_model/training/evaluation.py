"""Loss on held-out text: the same batches every time, without any effect on the router readings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from moe_model import ModelOutput
from moe_model.training.batches import Batch
from moe_model.training.distributed import ALONE, World
from moe_model.training.machine import mixed_precision


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Sequence[Batch],
    device: torch.device,
    dtype: torch.dtype,
    *,
    forward: Callable[..., ModelOutput] | None = None,
    world: World = ALONE,
) -> float:
    """Mean next-token cross-entropy in nats over all targets; the model keeps its mode.

    Args:
        model: In evaluation mode meanwhile.
        batches: All of them, on every rank; each rank evaluates its share.
        device: Of the model.
        dtype: Number format of matrix products.
        forward: What to call instead of the model where it is spread over ranks.
        world: The ranks. Each makes the same number of forward passes: sharded ones wait for each
            other.
    """
    forward = forward or model
    was_training = model.training
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for first in range(0, len(batches), world.size):
        place = first + world.rank
        batch = batches[min(place, len(batches) - 1)].to(device)
        length = batch.tokens_BN.shape[1] - 1
        with mixed_precision(device, dtype):
            targets_BS = batch.targets(1, length)
            output = forward(batch.tokens_BN[:, :length], targets=[targets_BS])
        if place < len(batches):
            sums[0] += output.losses[0]
            sums[1] += (targets_BS >= 0).sum()
    model.train(was_training)
    world.sum(sums)
    return (sums[0] / sums[1]).item()
