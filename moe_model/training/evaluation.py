"""Loss on held-out text: the same batches every time, and no trace in the router readings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_model.model import LanguageModel
from moe_model.training.machine import mixed_precision


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    batches: Sequence[tuple[Tensor, Tensor]],
    device: torch.device,
    dtype: torch.dtype,
) -> float:
    """Mean next-token cross-entropy in nats over all targets; the model keeps its mode."""
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=device)
    tokens = 0
    for inputs_BS, targets_BS in batches:
        with mixed_precision(device, dtype):
            logits_BSV = model(inputs_BS.to(device)).logits_BSV
        loss = F.cross_entropy(
            logits_BSV.float().flatten(0, 1), targets_BS.to(device).flatten(), reduction="sum"
        )
        total += loss
        tokens += targets_BS.numel()
    model.train(was_training)
    return total.item() / tokens
