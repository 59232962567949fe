"""Rotary position embedding (Su et al., 2021), on interleaved pairs as DeepSeek's weights expect.

Dimensions (0, 1), (2, 3), … are complex numbers turned by ``position · theta^(-2i/d)``. The tables
are computed where they are used, in fp32, rather than kept in a buffer: a buffer would follow the
model to bf16, where position 257 and position 258 are the same number.

YaRN (Peng et al., 2023) stretches the context. Dimensions that turn often keep their frequency,
those that turn less than once in the original context are slowed down by the factor, in between is
a ramp. It corrects twice, and the two are easily mistaken for each other: :func:`rotary_table`
scales the rotated parts by ``m(mscale) / m(mscale_all_dim)``, which is 1 in DeepSeek-V3, and
:func:`softmax_scale` multiplies **all** attention scores by ``m(mscale_all_dim)²``, which is 1.87
there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moe_model.config import Llama3Scaling, ModelConfig, YarnScaling


def rotary_table(
    config: ModelConfig, start: int, positions: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosine and sine for ``positions`` tokens from ``start`` on, each ``(S, rope_dim / 2)``, fp32.

    Positions are whole numbers up to 2^24, so that fp32 holds them exactly.
    """
    position_S = torch.arange(start, start + positions, dtype=torch.float32, device=device)
    return rotary_table_at(config, position_S)


def rotary_table_at(config: ModelConfig, position: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine for any positions ``(S,)`` or ``(B, S)``: one more dimension, fp32."""
    device = position.device
    even = torch.arange(0, config.qk_rope_head_dim, 2, dtype=torch.float32, device=device)
    frequency = config.rope_theta ** (-even / config.qk_rope_head_dim)
    amplitude = 1.0
    scaling = config.rope_scaling
    if isinstance(scaling, YarnScaling):
        frequency = _stretched(frequency, config, scaling)
        numerator = mscale(scaling.factor, scaling.mscale)
        amplitude = numerator / mscale(scaling.factor, scaling.mscale_all_dim)
    elif scaling is not None:
        frequency = slowed_as_in_llama3(frequency, scaling)
    angles = position.float().unsqueeze(-1) * frequency
    return angles.cos() * amplitude, angles.sin() * amplitude


def softmax_scale(config: ModelConfig) -> float:
    """What attention scores are multiplied with: ``qk_head_dim^-0.5``, under YaRN times m²."""
    scale: float = config.qk_head_dim**-0.5
    if isinstance(yarn := config.rope_scaling, YarnScaling):
        scale *= mscale(yarn.factor, yarn.mscale_all_dim) ** 2
    return scale


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs of ``x`` ``(B, S, heads, rope_dim)`` by the angles of their position."""
    cos, sin = (part.unsqueeze(-2) for part in table)
    real, imaginary = x.to(cos.dtype).reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)
    return turned.flatten(-2).type_as(x)


def mscale(factor: float, strength: float) -> float:
    """YaRN's correction m for a stretch by ``factor``."""
    return 1.0 if factor <= 1 else 0.1 * strength * math.log(factor) + 1.0


def slowed_as_in_llama3(frequency: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Kept, divided by the factor, or between the two, by the turns in the original context.

    What becomes of a pair depends on its own frequency alone.
    """
    turns = frequency * (scaling.original_max_position_embeddings / (2 * math.pi))
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequency / scaling.factor * (1 - kept) + frequency * kept


def _stretched(frequency: Tensor, config: ModelConfig, yarn: YarnScaling) -> Tensor:
    """The frequencies under YaRN: kept, divided by the factor, or between the two."""
    dims, theta = config.qk_rope_head_dim, config.rope_theta

    def dimension_that_turns(times: float) -> float:
        original = yarn.original_max_position_embeddings
        return dims * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension_that_turns(yarn.beta_fast)), 0)
    high: float = min(math.ceil(dimension_that_turns(yarn.beta_slow)), dims - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp
    pair = torch.arange(len(frequency), dtype=torch.float32, device=frequency.device)
    slowed = ((pair - low) / (high - low)).clamp(0, 1)
    return frequency / yarn.factor * slowed + frequency * (1 - slowed)
