"""Generate a sample at the end of a run."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from moe_model import ModelOutput
from moe_model.sampling import generate
from moe_model.training.run import Run

SAMPLE_TOKENS = 200
SHARDED_SAMPLE_TOKENS = 40
"""Fewer where every token gathers every layer."""


def sample(run: Run) -> str:
    """Continue the prompt with the model. All ranks call this; rank 0 gets the text.

    A sharded model stays sharded: all ranks read every token together, and a layer is gathered only
    while it computes.

    Raises:
        ValueError: If it cannot be continued.
    """
    sharded = run.options.parallel == "fsdp" and run.world.size > 1
    if not (sharded or run.world.is_main):
        return ""
    tokenizer = run.corpus.tokenizer
    prompt_S = tokenizer.encode(run.prompt)
    in_step = run.model.register_forward_hook(_logits_of_first) if sharded else None
    try:
        ids = generate(
            run.model,
            prompt_S,
            max_new_tokens=SHARDED_SAMPLE_TOKENS if sharded else SAMPLE_TOKENS,
            seed=run.options.seed,
            stop_at=run.stop_ids,
        )
    finally:
        if in_step is not None:
            in_step.remove()
    return tokenizer.decode(ids)


def _logits_of_first(model: Any, inputs: Any, output: ModelOutput) -> None:
    """Logits of rank 0 on all ranks: ranks that pick different tokens would not stop together."""
    dist.broadcast(output.logits_BSV, src=0)
