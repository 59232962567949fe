"""Multi-head Latent Attention (DeepSeek-V2, section 2.1; DeepSeek-V3, eq. 1-11), with its rotary
positions and its cache.

Keys and values of all heads are expanded from one small latent per token, and position enters
through a separate rotary part whose key is shared by all heads. So a cache needs ``kv_lora_rank +
qk_rope_head_dim`` numbers per token instead of ``2 · heads · head_dim``. The normed latent and the
rotated key are stored side by side, so that one product scores both.

There are two equivalent computations. **Materialised**: expand the latents to keys and values, then
ordinary causal attention; cheap for many new positions. **Absorbed**: since ``q · (W_UK c) =
(W_UKᵀ q) · c``, project the queries into the latent space and attend to the latents directly; cheap
for few new tokens and a long past, as in generation, so it is used wherever there is a past.

Rotary embedding (Su et al., 2021) works on interleaved pairs, as DeepSeek's weights expect:
dimensions (0, 1), (2, 3), … are complex numbers rotated by ``position · theta^(-2i/d)``. The tables
are computed where they are used: a buffer would follow the model to bf16, where positions 257 and
258 are the same number. YaRN (Peng et al., 2023) corrects twice: :func:`rotary_table` scales the
rotated parts by ``m(mscale) / m(mscale_all_dim)``, which is 1 in DeepSeek-V3, and
:func:`softmax_scale` multiplies **all** scores by ``m(mscale_all_dim)²``, which is 1.87 there.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_model.config import Llama3Scaling, ModelConfig, YarnScaling
from moe_model.fused import (
    RMSNorm,
    causal_attention,
    compute_dtype,
    keys_and_values,
    queries_with_position,
    rotate,
)

Remember = Callable[[Tensor], Tensor]
"""Appends the cache entries ``(B, S, R + rope)`` of new tokens; returns all ``(B, N, …)``."""


def rotary_table(config: ModelConfig, position: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine for positions ``(S,)`` or ``(B, S)``, each ``(…, rope_dim / 2)``.

    In fp32, which holds whole numbers up to 2^24 exactly. Both are scaled by YaRN's amplitude.
    """
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


def mscale(factor: float, strength: float) -> float:
    """YaRN's correction m for a stretch by ``factor``; 1 for a ``factor`` of at most 1."""
    return 1.0 if factor <= 1 else 0.1 * strength * math.log(factor) + 1.0


def slowed_as_in_llama3(frequency: Tensor, scaling: Llama3Scaling) -> Tensor:
    """The ``frequency`` of every pair under Llama 3's scaling, in radians a token.

    A pair that turns often in the original context keeps it, one that hardly turns gets it divided
    by the factor, and those between get a mean of both.
    """
    turns = frequency * (scaling.original_max_position_embeddings / (2 * math.pi))
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequency / scaling.factor * (1 - kept) + frequency * kept


def _stretched(frequency: Tensor, config: ModelConfig, yarn: YarnScaling) -> Tensor:
    """YaRN's: dimensions that rotate often keep their frequency, slow ones are divided by the
    factor, in between is a ramp."""
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


class MultiHeadLatentAttention(nn.Module):
    """Causal self-attention through a latent of rank R. Weight names are those of Hugging Face."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        D, H, R = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(D, H * config.qk_head_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(D, config.q_lora_rank, bias=config.attention_bias)
            # The norms of the two latents always use 1e-6, not rms_norm_eps: the published
            # weights were trained that way.
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, eps=1e-6)
            self.q_b_proj = nn.Linear(config.q_lora_rank, H * config.qk_head_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(
            D, R + config.qk_rope_head_dim, bias=config.attention_bias
        )
        self.kv_a_layernorm = RMSNorm(R, eps=1e-6)
        self.kv_b_proj = nn.Linear(R, H * (config.qk_nope_head_dim + config.v_head_dim), bias=False)
        self.o_proj = nn.Linear(H * config.v_head_dim, D, bias=config.attention_bias)

    def forward(
        self,
        x_BSD: Tensor,
        rotary: tuple[Tensor, Tensor],
        remember: Remember | None = None,
        visible_BSN: Tensor | None = None,
    ) -> Tensor:
        """Attend from every position to itself and the past; returns ``(B, S, D)``.

        Args:
            x_BSD: The normed stream.
            rotary: Cosine and sine of these S positions, see :func:`rotary_table`.
            remember: Appends to a cache and returns the past with it; ``None`` without a cache.
            visible_BSN: True where a token may attend, see :func:`visible_in_documents`; ``None``
                for itself and all tokens before it. Not used where the cache already has a past.
        """
        config = self.config
        tokens = x_BSD.shape[1]
        q_BSHd, latent_BSR, k_rope = self._project(x_BSD)
        past = 0
        if remember is not None:
            k_turned = rotate(k_rope.unsqueeze(2), rotary).squeeze(2)
            entries_BNW = remember(torch.cat((latent_BSR, k_turned), dim=-1)).to(x_BSD.dtype)
            past = entries_BNW.shape[1] - tokens
        if past == 0:
            kv = self.kv_b_proj(latent_BSR).unflatten(-1, (config.num_attention_heads, -1))
            scale = softmax_scale(config)
            k_BHSd, v_BHSv = keys_and_values(kv, k_rope, rotary, config.v_head_dim)
            q_BHSd = queries_with_position(q_BSHd, rotary)
            out_BHSv = causal_attention(q_BHSd, k_BHSd, v_BHSv, scale, visible_BSN)
            out_BSHv = out_BHSv.transpose(1, 2)
        else:
            q_turned = rotate(q_BSHd[..., config.qk_nope_head_dim :], rotary)
            q_BSHd = torch.cat((q_BSHd[..., : config.qk_nope_head_dim], q_turned), dim=-1)
            out_BSHv = self._absorbed(q_BSHd, entries_BNW)
        out_BSD: Tensor = self.o_proj(out_BSHv.flatten(-2))
        return out_BSD

    def _project(self, x_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``(B, S, H, d)``, normed latent and rotary key, before rotation."""
        config = self.config
        dtype = compute_dtype(x_BSD)
        low_rank = config.q_lora_rank is not None
        query = self.q_a_proj if low_rank else self.q_proj
        # One product instead of two: concatenating the weights costs less than reading x twice.
        weights = (query.weight.to(dtype), self.kv_a_proj_with_mqa.weight.to(dtype))
        bias = self.first_bias()
        q, latent_BSR, k_rope = torch.split(
            F.linear(x_BSD, torch.cat(weights), None if bias is None else bias.to(dtype)),
            [len(query.weight), config.kv_lora_rank, config.qk_rope_head_dim],
            dim=-1,
        )
        if low_rank:
            q = self.q_b_proj(self.q_a_layernorm(q))
        q_BSHd = q.view(*x_BSD.shape[:2], config.num_attention_heads, config.qk_head_dim)
        return q_BSHd, self.kv_a_layernorm(latent_BSR), k_rope

    def first_bias(self) -> Tensor | None:
        """Bias of the queries, latent and rotary key, which are one product.

        ``None`` without ``attention_bias``; a full query has none, so zeros take its place.
        """
        if not self.config.attention_bias:
            return None
        key_value = self.kv_a_proj_with_mqa.bias
        full = self.config.q_lora_rank is None
        query = key_value.new_zeros(len(self.q_proj.weight)) if full else self.q_a_proj.bias
        return torch.cat((query, key_value))

    def _absorbed(self, q_BSHd: Tensor, entries_BNW: Tensor) -> Tensor:
        config = self.config
        R = self.config.kv_lora_rank
        weight_HxR = self.kv_b_proj.weight.view(config.num_attention_heads, -1, R)
        up_key_HnR = weight_HxR[:, : config.qk_nope_head_dim]
        up_value_HvR = weight_HxR[:, config.qk_nope_head_dim :]
        q_nope, q_rope = torch.split(
            q_BSHd, [config.qk_nope_head_dim, config.qk_rope_head_dim], dim=-1
        )
        q_latent = torch.einsum("bshn,hnr->bshr", q_nope, up_key_HnR)
        q_BSHW = torch.cat((q_latent, q_rope.to(q_latent.dtype)), dim=-1)
        scores_BSHN = torch.einsum("bshw,bnw->bshn", q_BSHW, entries_BNW) * softmax_scale(config)
        queries, tokens = q_BSHd.shape[1], entries_BNW.shape[1]
        if queries > 1:
            visible_S1N = causal_mask(queries, tokens, q_BSHd.device).unsqueeze(1)
            scores_BSHN = scores_BSHN.masked_fill(~visible_S1N, float("-inf"))
        share_BSHN = scores_BSHN.float().softmax(dim=-1).to(entries_BNW.dtype)
        context_BSHR = torch.einsum("bshn,bnr->bshr", share_BSHN, entries_BNW[..., :R])
        return torch.einsum("bshr,hvr->bshv", context_BSHR, up_value_HvR)


def causal_mask(queries: int, tokens: int, device: torch.device) -> Tensor:
    """True where one of the last S = ``queries`` of N = ``tokens`` may attend: ``(S, N)``."""
    allowed_SN = torch.ones(queries, tokens, dtype=torch.bool, device=device)
    return allowed_SN.tril(tokens - queries)


def visible_in_documents(starts_BS: Tensor) -> Tensor:
    """True where a token may attend: to its own document, up to itself, ``(B, S, S)``.

    ``starts_BS`` is true for the first token of a document.
    """
    document_BS = starts_BS.cumsum(dim=-1)
    return (document_BS.unsqueeze(2) == document_BS.unsqueeze(1)).tril()


class LatentCache:
    """Room for ``length`` tokens of ``batch`` sequences; lower :attr:`used` to forget the last,
    such as a draft."""

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        length: int,
        *,
        layers: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Without ``layers`` for all decoder layers, multi-token prediction excluded."""
        width = config.kv_lora_rank + config.qk_rope_head_dim
        depth = config.num_hidden_layers if layers is None else layers
        self.entries_LBNW = torch.zeros(depth, batch, length, width, dtype=dtype, device=device)
        self.used = 0

    def __len__(self) -> int:
        """Capacity in tokens."""
        return self.entries_LBNW.shape[2]

    def append(self, layer: int, entries_BSW: Tensor) -> Tensor:
        """Append the entries of S new tokens; return all entries of ``layer`` so far.

        This does not change :attr:`used`: every layer writes at the same position, and the model
        advances it once all layers have written. ``ValueError`` if the tokens do not fit.

        Returns:
            ``(B, used + S, W)``, a view.
        """
        end = self.end_of(entries_BSW.shape[1])
        layer_BNW = self.entries_LBNW[layer]
        layer_BNW[:, self.used : end] = entries_BSW
        return layer_BNW[:, :end]

    def end_of(self, tokens: int) -> int:
        """The end position of ``tokens`` more; ``ValueError`` if they do not fit."""
        end = self.used + tokens
        if end > len(self):
            raise ValueError(
                f"the cache holds {len(self)} tokens, {self.used} of them used: "
                f"{tokens} more do not fit; create a longer cache, or lower used."
            )
        return end
