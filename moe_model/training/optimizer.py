"""AdamW as large language models are trained with it, and its learning rate.

Betas 0.9 and 0.95, weight decay 0.1, gradients clipped at norm 1 (DeepSeek-V3, section 4.2). Only
matrices decay: a norm's gain has no reason to be small. The routers' bias is a buffer, not a
parameter, and so never gets here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

WEIGHT_DECAY = 0.1
CLIP_NORM = 1.0
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW remembers of every parameter."""
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


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All that the optimizer remembers, as ``optimizer.<parameter name>.<moment>``."""
    return {
        f"optimizer.{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Give the optimizer what :func:`optimizer_tensors` returned.

    Raises:
        ValueError: If a parameter has no moments in ``tensors``, or some of another shape.
    """
    for name, parameter in model.named_parameters():
        moments = {}
        for key in MOMENTS:
            value = tensors.get(f"optimizer.{name}.{key}")
            shape = () if key == "step" else parameter.shape
            if value is None or value.shape != shape:
                found = None if value is None else tuple(value.shape)
                raise ValueError(
                    f"optimizer.{name}.{key} is {found} and not {tuple(shape)}: the checkpoint is "
                    "of another model."
                )
            # As AdamW keeps them: the step of a fused optimizer lives on the device as well.
            moments[key] = value.to(parameter.device, copy=True)
        optimizer.state[parameter] = moments
