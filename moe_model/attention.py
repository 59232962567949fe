"""Multi-head Latent Attention (DeepSeek-V2, section 2.1; DeepSeek-V3, eq. 1-11).

Keys and values of all heads are expanded from one small latent per token, and position enters
through a separate rotary part whose key is shared by all heads. So a cache needs ``kv_lora_rank +
qk_rope_head_dim`` numbers per token instead of ``2 · heads · head_dim``. This is the materialised
form, the cheap one when many positions are processed at once: expand, then ordinary causal
attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_model.config import ModelConfig
from moe_model.norm import RMSNorm
from moe_model.rotary import rotate


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

    def forward(self, x_BSD: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Attend from every position to itself and the past; returns ``(B, S, D)``."""
        config = self.config
        nope, rope = config.qk_nope_head_dim, config.qk_rope_head_dim
        heads = (*x_BSD.shape[:2], config.num_attention_heads, -1)
        q_nope, q_rope = torch.split(self._queries(x_BSD).view(heads), [nope, rope], dim=-1)
        q_BSHd = torch.cat((q_nope, rotate(q_rope, rotary)), dim=-1)

        latent_BSR, k_rope = torch.split(
            self.kv_a_proj_with_mqa(x_BSD), [config.kv_lora_rank, rope], dim=-1
        )
        k_rope = rotate(k_rope.unsqueeze(2), rotary)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent_BSR))
        k_nope, v_BSHv = torch.split(kv.view(heads), [nope, config.v_head_dim], dim=-1)
        k_rope = k_rope.expand(-1, -1, config.num_attention_heads, -1)
        k_BSHd = torch.cat((k_nope, k_rope), dim=-1)

        out_BHSv = F.scaled_dot_product_attention(
            q_BSHd.transpose(1, 2),
            k_BSHd.transpose(1, 2),
            v_BSHv.transpose(1, 2),
            is_causal=True,
            scale=config.qk_head_dim**-0.5,
        )
        out_BSD: Tensor = self.o_proj(out_BHSv.transpose(1, 2).flatten(-2))
        return out_BSD

    def _queries(self, x_BSD: Tensor) -> Tensor:
        if self.config.q_lora_rank is None:
            q: Tensor = self.q_proj(x_BSD)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BSD)))
        return q
