"""AdamW as large language models are trained with it, and its learning rate.

Betas 0.9 and 0.95, weight decay 0.1, gradients clipped at norm 1 (DeepSeek-V3, section 4.2). Only
matrices decay: a norm's gain has no reason to be small. The routers' bias is a buffer, not a
parameter, and so never gets here.
"""

from __future__ import annotations

import math

import torch
from torch import nn

WEIGHT_DECAY = 0.1
CLIP_NORM = 1.0
FINAL_SHARE = 0.1
"""Where the cosine ends, as a share of the peak learning rate."""


def make_optimizer(model: nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """One fused AdamW over all parameters of ``model``, in two groups: with and without decay."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def learning_rate_at(step: int, steps: int, peak: float) -> float:
    """Learning rate of 1-based ``step``: warm-up for a tenth (100 at most), then a cosine."""
    warm_up = max(1, min(100, steps // 10))
    if step <= warm_up:
        return peak * step / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return peak * (FINAL_SHARE + (1 - FINAL_SHARE) * (1 + math.cos(math.pi * progress)) / 2)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Use ``learning_rate`` for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
