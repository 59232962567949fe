"""RMSNorm: divide by the root mean square, multiply by a learned gain (Zhang & Sennrich, 2019).

The mean square is always computed in fp32: squares of bf16 values lose small contributions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_model.fused import rms_norm


class RMSNorm(nn.Module):
    """``x · rsqrt(mean(x²) + eps) · weight`` over the last dimension.

    Returns the dtype of ``x``; under autocast the autocast dtype, which the next product needs.
    """

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, compute_dtype(x))


def compute_dtype(x: Tensor) -> torch.dtype:
    """The autocast dtype where autocast is on, else that of ``x``."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
