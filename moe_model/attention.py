"""Multi-head Latent Attention (DeepSeek-V2, section 2.1; DeepSeek-V3, eq. 1-11).

Keys and values of all heads are expanded from one small latent per token, and position enters
through a separate rotary part whose key is shared by all heads. So a cache needs ``kv_lora_rank +
qk_rope_head_dim`` numbers per token instead of ``2 · heads · head_dim``.

There are two equivalent computations. **Materialised**: expand the latents to keys and values, then
ordinary causal attention; cheap for many new positions. **Absorbed**: since ``q · (W_UK c) =
(W_UKᵀ q) · c``, project the queries into the latent space and attend to the latents directly; cheap
for few new tokens and a long past, as in generation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_model.config import ModelConfig
from moe_model.fused import causal_attention, keys_and_values, queries_with_position
from moe_model.norm import RMSNorm, compute_dtype
from moe_model.rotary import rotate, softmax_scale

Remember = Callable[[Tensor], Tensor]
"""Appends the cache entries ``(B, S, R + rope)`` of new tokens; returns all ``(B, N, …)``."""


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
            x_BSD: The normed residual stream.
            rotary: Angles of these S positions.
            remember: Appends these tokens to a cache and returns the whole past.
            visible_BSN: See :func:`visible_tokens`; ``None`` for the whole past.
        """
        config, tokens = self.config, x_BSD.shape[1]
        q_BSHd, latent_BSR, k_rope = self._project(x_BSD)
        past = 0
        if remember is not None or visible_BSN is not None:
            k_turned = rotate(k_rope.unsqueeze(2), rotary).squeeze(2)
            entries_BNW = torch.cat((latent_BSR, k_turned), dim=-1)
            if remember is not None:
                entries_BNW = remember(entries_BNW).to(x_BSD.dtype)
            past = entries_BNW.shape[1] - tokens
        if past == 0 and visible_BSN is None:
            out_BSHv = self._materialised(q_BSHd, latent_BSR, k_rope, rotary)
        else:
            q_turned = rotate(q_BSHd[..., config.qk_nope_head_dim :], rotary)
            q_BSHd = torch.cat((q_BSHd[..., : config.qk_nope_head_dim], q_turned), dim=-1)
            if visible_BSN is None and tokens > 1:
                visible_BSN = causal_mask(tokens, past + tokens, x_BSD.device).unsqueeze(0)
            cheaper = past > 0 and absorbing_is_cheaper(config, tokens)
            attend = self._absorbed if cheaper else self._over_the_past
            out_BSHv = attend(q_BSHd, entries_BNW, visible_BSN)
        out_BSD: Tensor = self.o_proj(out_BSHv.flatten(-2))
        return out_BSD

    def _project(self, x_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``(B, S, H, d)``, normed latent and rotary key, before rotation."""
        config, dtype = self.config, compute_dtype(x_BSD)
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
        """Bias of the first product: zeros for a full query, which has none."""
        key_value_bias = self.kv_a_proj_with_mqa.bias
        if not self.config.attention_bias:
            return None
        if self.config.q_lora_rank is None:
            query_bias = key_value_bias.new_zeros(len(self.q_proj.weight))
        else:
            query_bias = self.q_a_proj.bias
        return torch.cat((query_bias, key_value_bias))

    def _materialised(
        self, q_BSHd: Tensor, latent_BSR: Tensor, k_rope: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Materialised attention without a past."""
        k_BHSd, v_BHSv = keys_and_values(
            self._expand(latent_BSR), k_rope, rotary, self.config.v_head_dim
        )
        q_BHSd = queries_with_position(q_BSHd, rotary)
        return causal_attention(q_BHSd, k_BHSd, v_BHSv, softmax_scale(self.config)).transpose(1, 2)

    def _over_the_past(
        self, q_BSHd: Tensor, entries_BNW: Tensor, visible_BSN: Tensor | None
    ) -> Tensor:
        """Materialised attention: expand all N latents; the S queries are the last of the N
        tokens."""
        R = self.config.kv_lora_rank
        k_nope, v_BNHv = torch.split(
            self._expand(entries_BNW[..., :R]),
            [self.config.qk_nope_head_dim, self.config.v_head_dim],
            dim=-1,
        )
        k_turned = entries_BNW[..., R:].unsqueeze(2).expand(*k_nope.shape[:3], -1)
        k_BNHd = torch.cat((k_nope, k_turned), dim=-1)
        out_BHSv = F.scaled_dot_product_attention(
            q_BSHd.transpose(1, 2),
            k_BNHd.transpose(1, 2),
            v_BNHv.transpose(1, 2),
            attn_mask=None if visible_BSN is None else visible_BSN.unsqueeze(1),
            scale=softmax_scale(self.config),
        )
        return out_BHSv.transpose(1, 2)

    def _expand(self, latent_BNR: Tensor) -> Tensor:
        """Keys without position and values of all heads: ``(B, N, H, nope + v)``."""
        kv: Tensor = self.kv_b_proj(latent_BNR)
        width = self.config.qk_nope_head_dim + self.config.v_head_dim
        return kv.view(*latent_BNR.shape[:2], self.config.num_attention_heads, width)

    def _absorbed(self, q_BSHd: Tensor, entries_BNW: Tensor, visible_BSN: Tensor | None) -> Tensor:
        """Absorbed attention: score the latents with projected queries."""
        config, R = self.config, self.config.kv_lora_rank
        weight_HxR = self.kv_b_proj.weight.view(config.num_attention_heads, -1, R)
        up_key_HnR = weight_HxR[:, : config.qk_nope_head_dim]
        up_value_HvR = weight_HxR[:, config.qk_nope_head_dim :]
        q_nope, q_rope = torch.split(
            q_BSHd, [config.qk_nope_head_dim, config.qk_rope_head_dim], dim=-1
        )
        q_latent = torch.einsum("bshn,hnr->bshr", q_nope, up_key_HnR)
        q_BSHW = torch.cat((q_latent, q_rope.to(q_latent.dtype)), dim=-1)
        scores_BSHN = torch.einsum("bshw,bnw->bshn", q_BSHW, entries_BNW) * softmax_scale(config)
        if visible_BSN is not None:
            scores_BSHN = scores_BSHN.masked_fill(~visible_BSN.unsqueeze(2), float("-inf"))
        share_BSHN = scores_BSHN.float().softmax(dim=-1).to(entries_BNW.dtype)
        context_BSHR = torch.einsum("bshn,bnr->bshr", share_BSHN, entries_BNW[..., :R])
        return torch.einsum("bshr,hvr->bshv", context_BSHR, up_value_HvR)


def absorbing_is_cheaper(config: ModelConfig, queries: int) -> bool:
    """Whether absorbed attention costs less for ``queries`` new tokens than materialised attention.

    Per past token and head: absorbed ``S · (2R + rope)`` products, materialised about
    ``R · (nope + v)`` for the expansion alone.
    """
    absorbed = queries * (2 * config.kv_lora_rank + config.qk_rope_head_dim)
    return absorbed <= config.kv_lora_rank * (config.qk_nope_head_dim + config.v_head_dim)


def causal_mask(queries: int, tokens: int, device: torch.device) -> Tensor:
    """True where one of the last ``queries`` tokens may look: ``(S, N)``."""
    allowed_SN = torch.ones(queries, tokens, dtype=torch.bool, device=device)
    return allowed_SN.tril(tokens - queries)


def visible_tokens(valid_BN: Tensor, queries: int) -> Tensor:
    """True where one of the last ``queries`` tokens may look: ``(B, S, N)``.

    A token may look at real tokens up to its own position, and always at itself: the softmax of a
    padded query that sees nothing would be NaN, and NaN times 0 would reach every other token.

    Args:
        valid_BN: False for padding.
        queries: The S last of the N tokens.
    """
    tokens = valid_BN.shape[1]
    causal_SN = causal_mask(queries, tokens, valid_BN.device)
    itself_SN = causal_SN.triu(tokens - queries)
    return causal_SN & (valid_BN.unsqueeze(1) | itself_SN)
