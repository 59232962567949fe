"""The optimizers that large language models are trained with, and their learning rate.

AdamW: betas 0.9 and 0.95, weight decay 0.1, gradients clipped at norm 1 (DeepSeek-V3, section 4.2).
Only matrices decay; the gains of norms do not. The routers' bias is a buffer, not a parameter, so
the optimizer never sees it.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from moe_model.training.options import OptimizerName

WEIGHT_DECAY = 0.1
CLIP_NORM = 1.0
FINAL_SHARE = 0.1
"""Where the cosine ends, as a share of the peak learning rate."""


class MuonAndAdamW(torch.optim.Optimizer):
    """torch's Muon and torch's AdamW as one optimizer: its groups and its state are theirs."""

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._parts = (muon, adamw)
        muon.state = adamw.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for part in self._parts:
            part.step()  # type: ignore[no-untyped-call]  # torch


def make_optimizer(
    model: nn.Module, learning_rate: float, name: OptimizerName = "adamw"
) -> torch.optim.Optimizer:
    """The optimizer for the parameters of ``model``.

    ``adamw`` is one fused AdamW in two groups: with and without decay. ``muon`` moves what lies
    between embedding and head and is a plain matrix by its orthogonalised momentum (Jordan, 2024),
    scaled so that learning rate and decay are those of AdamW (Liu et al., 2025, section 2.2). The
    experts (a stack of matrices each), routers, embedding, head and norms keep AdamW.
    """
    matrices = []
    if name == "muon":
        linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        matrices = [module.weight for n, module in linear.items() if n != "lm_head"]
    taken = set(matrices)
    others = [parameter for parameter in model.parameters() if parameter not in taken]
    groups = [
        {"params": [p for p in others if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)
    if not matrices:
        return adamw
    muon = torch.optim.Muon(
        matrices,
        lr=learning_rate,
        weight_decay=WEIGHT_DECAY,
        adjust_lr_fn="match_rms_adamw",
    )
    return MuonAndAdamW(muon, adamw)


def learning_rate_at(step: int, steps: int, peak: float) -> float:
    """Learning rate of 1-based ``step``: warm-up for a tenth (100 at most), then a cosine."""
    warm_up = max(1, min(100, steps // 10))
    if step <= warm_up:
        return peak * step / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return peak * (FINAL_SHARE + (1 - FINAL_SHARE) * (1 + math.cos(math.pi * progress)) / 2)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
