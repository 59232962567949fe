"""What a run shows of its model: the loss on held-out text, and a sample at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import nn

from moe_model import ModelOutput
from moe_model.sampling import generate
from moe_model.training.batches import Batch
from moe_model.training.distributed import ALONE, World
from moe_model.training.run import Run
from moe_model.training.step import mixed_precision

SAMPLE_TOKENS = 200
SHARDED_SAMPLE_TOKENS = 40
"""Fewer where every token gathers every layer."""


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
        batches: All of them, on every rank; each rank evaluates its share, in the same number of
            forward passes: sharded ranks wait for each other.
        forward: What to call instead of the model where it is spread over ranks.
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


def sample(run: Run) -> str:
    """Continue the prompt with the model. All ranks call this; rank 0 gets the text.

    A sharded model stays sharded: all ranks read every token together, and a layer is gathered only
    while it computes. Raises ``ValueError`` if it cannot be continued.
    """
    sharded = run.options.parallel == "fsdp" and run.world.size > 1
    if not (sharded or run.world.is_main):
        return ""
    tokenizer = run.corpus.tokenizer
    prompt_S = tokenizer.encode(run.prompt)
    if sharded:  # ranks that pick different tokens would not stop together
        run.model.register_forward_hook(lambda *seen: dist.broadcast(seen[2].logits_BSV, src=0))
    ids = generate(
        run.model,
        prompt_S,
        max_new_tokens=SHARDED_SAMPLE_TOKENS if sharded else SAMPLE_TOKENS,
        seed=run.options.seed,
        stop_at=run.stop_ids,
    )
    return tokenizer.decode(ids)
