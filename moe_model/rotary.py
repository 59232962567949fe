"""Rotary position embedding (Su et al., 2021), on interleaved pairs as DeepSeek's weights expect.

Dimensions (0, 1), (2, 3), … are complex numbers turned by ``position · theta^(-2i/d)``. The tables
are computed where they are used, in fp32, rather than kept in a buffer: a buffer would follow the
model to bf16, where position 257 and position 258 are the same number.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(
    positions: int, rope_dim: int, theta: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every angle, each ``(positions, rope_dim / 2)`` in fp32."""
    even = torch.arange(0, rope_dim, 2, dtype=torch.float32, device=device)
    position = torch.arange(positions, dtype=torch.float32, device=device)
    angles = torch.outer(position, theta ** (-even / rope_dim))
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs of ``x`` ``(B, S, heads, rope_dim)`` by the angles of their position."""
    cos, sin = (part[:, None, :] for part in table)
    real, imaginary = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)
    return turned.flatten(-2).type_as(x)
