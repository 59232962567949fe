"""RMSNorm: divide by the root mean square, multiply by a learned gain (Zhang & Sennrich, 2019).

The mean square is taken in fp32 whatever the activations are: squares of bf16 values lose the tail.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """``x · rsqrt(mean(x²) + eps) · weight`` over the last dimension, in the dtype of ``x``."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        normed = F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps)
        return normed.type_as(x)
