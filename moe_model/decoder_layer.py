"""A decoder layer: attention and feed-forward with residual connections (DeepSeek-V3, section 2.1).

The first layers have a dense feed-forward, the others one shared and many routed experts. Parameter
names follow Hugging Face's ``DeepseekV3ForCausalLM``, except ``router`` for ``gate``.
"""

from __future__ import annotations

from torch import Tensor, nn

from moe_model.attention import MultiHeadLatentAttention, Remember
from moe_model.config import ModelConfig
from moe_model.experts import Experts, FeedForward
from moe_model.norm import RMSNorm
from moe_model.router import Router, Routing


class MixtureOfExperts(nn.Module):
    """``shared(x) + sum_k weight_k · expert_k(x)``; the shared expert is not gated or scaled."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.router = Router(config)
        self.experts = Experts(config)
        shared_width = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = (
            FeedForward(config.hidden_size, shared_width) if shared_width else None
        )

    def forward(self, x_BSD: Tensor, valid_BS: Tensor | None = None) -> tuple[Tensor, Routing]:
        x_TD = x_BSD.flatten(0, 1)
        routing = self.router(x_TD, None if valid_BS is None else valid_BS.flatten())
        y_TD = self.experts(x_TD, routing.expert_ids_TK, routing.weights_TK)
        if self.shared_experts is not None:
            y_TD = y_TD + self.shared_experts(x_TD)
        return y_TD.view_as(x_BSD), routing


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each applied to the normed residual stream and added to it."""

    def __init__(self, config: ModelConfig, depth: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MultiHeadLatentAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: MixtureOfExperts | FeedForward
        if depth < config.first_k_dense_replace:
            self.mlp = FeedForward(config.hidden_size, config.intermediate_size)
        else:
            self.mlp = MixtureOfExperts(config)

    def forward(
        self,
        x_BSD: Tensor,
        rotary: tuple[Tensor, Tensor],
        valid_BS: Tensor | None = None,
        remember: Remember | None = None,
        visible_BSN: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the stream, followed by the fields of a ``Routing`` if this layer has a router.

        Every kind of activation checkpointing supports a flat tuple of tensors.
        """
        x_BSD = x_BSD + self.self_attn(self.input_layernorm(x_BSD), rotary, remember, visible_BSN)
        y_BSD = self.post_attention_layernorm(x_BSD)
        if isinstance(self.mlp, MixtureOfExperts):
            y_BSD, routing = self.mlp(y_BSD, valid_BS)
            return (x_BSD + y_BSD, *routing)
        return (x_BSD + self.mlp(y_BSD),)
