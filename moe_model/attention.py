"""Multi-head Latent Attention (DeepSeek-V2, section 2.1; DeepSeek-V3, eq. 1-11).

Keys and values of all heads are expanded from one small latent per token, and position enters
through a separate rotary part whose key is shared by all heads. So a cache needs ``kv_lora_rank +
qk_rope_head_dim`` numbers per token instead of ``2 · heads · head_dim``.

There are two ways to compute the same thing. **Materialised**: expand the latents to keys and
values, then ordinary causal attention; cheap where many positions are read at once. **Absorbed**:
since ``q · (W_UK c) = (W_UKᵀ q) · c``, bring the queries into the space of the latents and leave
the past as it is; cheap where few tokens look at a long past, which is what generating is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_model.config import ModelConfig
from moe_model.norm import RMSNorm
from moe_model.rotary import rotate, softmax_scale

Remember = Callable[[Tensor], Tensor]
"""Takes the cache entries ``(B, S, R + rope)`` of new tokens, returns all so far ``(B, N, …)``."""


class MultiHeadLatentAttention(nn.Module):
    """Causal self-attention through a latent of rank R. Weight names are those of Hugging Face."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        D, H, R = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(D, H * config.qk_head_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(D, config.q_lora_rank, bias=False)
            # The norms of the two latents use 1e-6 whatever rms_norm_eps says: so were the
            # published weights trained.
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, eps=1e-6)
            self.q_b_proj = nn.Linear(config.q_lora_rank, H * config.qk_head_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(D, R + config.qk_rope_head_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(R, eps=1e-6)
        self.kv_b_proj = nn.Linear(R, H * (config.qk_nope_head_dim + config.v_head_dim), bias=False)
        self.o_proj = nn.Linear(H * config.v_head_dim, D, bias=False)

    def forward(
        self, x_BSD: Tensor, rotary: tuple[Tensor, Tensor], remember: Remember | None = None
    ) -> Tensor:
        """Attend from every position to itself and the past; returns ``(B, S, D)``.

        Args:
            x_BSD: The normed stream.
            rotary: Angles of these S positions.
            remember: Puts these tokens behind the past in a cache and returns both.
        """
        config = self.config
        nope, rope, R = config.qk_nope_head_dim, config.qk_rope_head_dim, config.kv_lora_rank
        heads = (*x_BSD.shape[:2], config.num_attention_heads, -1)
        q_nope, q_rope = torch.split(self._queries(x_BSD).view(heads), [nope, rope], dim=-1)
        q_rope = rotate(q_rope, rotary)

        latent_BSR, k_rope = torch.split(self.kv_a_proj_with_mqa(x_BSD), [R, rope], dim=-1)
        latent_BSR = self.kv_a_layernorm(latent_BSR)
        k_rope = rotate(k_rope.unsqueeze(2), rotary).squeeze(2)
        if remember is None:
            out_BSHv = self._materialised(q_nope, q_rope, latent_BSR, k_rope)
        else:
            entries_BNW = remember(torch.cat((latent_BSR, k_rope), dim=-1)).to(x_BSD.dtype)
            if absorbing_is_cheaper(config, x_BSD.shape[1]):
                out_BSHv = self._absorbed(q_nope, q_rope, entries_BNW)
            else:
                out_BSHv = self._materialised(
                    q_nope, q_rope, entries_BNW[..., :R], entries_BNW[..., R:]
                )
        out_BSD: Tensor = self.o_proj(out_BSHv.flatten(-2))
        return out_BSD

    def _queries(self, x_BSD: Tensor) -> Tensor:
        if self.config.q_lora_rank is None:
            q: Tensor = self.q_proj(x_BSD)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BSD)))
        return q

    def _materialised(
        self, q_nope: Tensor, q_rope: Tensor, latent_BNR: Tensor, k_rope: Tensor
    ) -> Tensor:
        """Expand all N latents to keys and values; the S queries are the last of the N tokens."""
        config, num_heads = self.config, self.config.num_attention_heads
        q_BSHd = torch.cat((q_nope, q_rope), dim=-1)
        kv = self.kv_b_proj(latent_BNR).unflatten(-1, (num_heads, -1))
        k_nope, v_BNHv = kv.split([config.qk_nope_head_dim, config.v_head_dim], dim=-1)
        k_rope = k_rope.unsqueeze(2).expand(-1, -1, num_heads, -1)
        k_BNHd = torch.cat((k_nope, k_rope), dim=-1)
        queries, tokens = q_BSHd.shape[1], k_BNHd.shape[1]
        out_BHSv = F.scaled_dot_product_attention(
            q_BSHd.transpose(1, 2),
            k_BNHd.transpose(1, 2),
            v_BNHv.transpose(1, 2),
            attn_mask=None if queries == tokens else causal_mask(queries, tokens, kv.device),
            is_causal=queries == tokens,
            scale=softmax_scale(config),
        )
        return out_BHSv.transpose(1, 2)

    def _absorbed(self, q_nope: Tensor, q_rope: Tensor, entries_BNW: Tensor) -> Tensor:
        """Score the latents themselves, with queries brought into their space."""
        config, R = self.config, self.config.kv_lora_rank
        weight_HxR = self.kv_b_proj.weight.view(config.num_attention_heads, -1, R)
        up_key_HnR = weight_HxR[:, : config.qk_nope_head_dim]
        up_value_HvR = weight_HxR[:, config.qk_nope_head_dim :]
        q_latent = torch.einsum("bshn,hnr->bshr", q_nope, up_key_HnR)
        q_BSHW = torch.cat((q_latent, q_rope.to(q_latent.dtype)), dim=-1)
        scores_BSHN = torch.einsum("bshw,bnw->bshn", q_BSHW, entries_BNW) * softmax_scale(config)
        queries, tokens = scores_BSHN.shape[1], scores_BSHN.shape[-1]
        if queries > 1:
            mask_S1N = causal_mask(queries, tokens, scores_BSHN.device).unsqueeze(1)
            scores_BSHN = scores_BSHN.masked_fill(~mask_S1N, float("-inf"))
        share_BSHN = scores_BSHN.float().softmax(dim=-1).to(entries_BNW.dtype)
        context_BSHR = torch.einsum("bshn,bnr->bshr", share_BSHN, entries_BNW[..., :R])
        return torch.einsum("bshr,hvr->bshv", context_BSHR, up_value_HvR)


def absorbing_is_cheaper(config: ModelConfig, queries: int) -> bool:
    """Whether ``queries`` new tokens cost less absorbed than expanding the whole past would.

    Per past token and head: absorbed ``S · (2R + rope)`` products, materialised about
    ``R · (nope + v)`` for the expansion alone.
    """
    absorbed = queries * (2 * config.kv_lora_rank + config.qk_rope_head_dim)
    return absorbed <= config.kv_lora_rank * (config.qk_nope_head_dim + config.v_head_dim)


def causal_mask(queries: int, tokens: int, device: torch.device) -> Tensor:
    """True where one of the last ``queries`` tokens may look: ``(S, N)``."""
    allowed_SN = torch.ones(queries, tokens, dtype=torch.bool, device=device)
    return allowed_SN.tril(tokens - queries)
