"""The language model: embedding, pre-norm decoder layers, norm, head (DeepSeek-V3, section 2.1).

A layer is two residual lines; the first layers have a dense feed-forward, the others one shared and
many routed experts. Parameter names follow Hugging Face's ``DeepseekV3ForCausalLM``, with
``router`` where it says ``gate``, so that weights travel both ways.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from moe_model.attention import MultiHeadLatentAttention
from moe_model.balance import RouterReadings
from moe_model.config import ModelConfig
from moe_model.experts import Experts, FeedForward
from moe_model.norm import RMSNorm
from moe_model.rotary import rotary_table
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

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, Routing]:
        x_TD = x_BSD.flatten(0, 1)
        routing = self.router(x_TD)
        y_TD = self.experts(x_TD, routing.expert_ids_TK, routing.weights_TK)
        if self.shared_experts is not None:
            y_TD = y_TD + self.shared_experts(x_TD)
        return y_TD.view_as(x_BSD), routing


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each on the normed stream and added back to it."""

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

    def forward(self, x_BSD: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """The stream, followed by the fields of a ``Routing`` where this layer has a router.

        One flat tuple of tensors is what every kind of activation checkpointing can hand back.
        """
        x_BSD = x_BSD + self.self_attn(self.input_layernorm(x_BSD), rotary)
        y_BSD = self.post_attention_layernorm(x_BSD)
        if isinstance(self.mlp, MixtureOfExperts):
            y_BSD, routing = self.mlp(y_BSD)
            return (x_BSD + y_BSD, *routing)
        return (x_BSD + self.mlp(y_BSD),)


class ModelOutput(NamedTuple):
    """What a forward pass returns."""

    logits_BSV: Tensor
    """Scores of the next token at every position."""
    routings: tuple[Routing, ...]
    """What each router decided, in forward order, over the B·S tokens."""


class LanguageModel(nn.Module):
    """Next-token logits; while training, also what its routers did, in :attr:`readings`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, depth) for depth in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.readings = RouterReadings()
        self.init_weights()

    def forward(self, ids_BS: Tensor, valid_BS: Tensor | None = None) -> ModelOutput:
        """Logits for every position.

        Args:
            ids_BS: Token ids, int64.
            valid_BS: False for padding, which is then left out of the router readings. The causal
                mask alone keeps padding on the right from changing what comes before it.
        """
        config = self.config
        rotary = rotary_table(
            ids_BS.shape[1], config.qk_rope_head_dim, config.rope_theta, ids_BS.device
        )
        x_BSD = self.embed_tokens(ids_BS)
        routings = []
        for layer in self.layers:
            x_BSD, *routing = layer(x_BSD, rotary)
            if routing:
                routings.append(Routing(*routing))
        # Evaluation and sampling must not move the bias, whichever way they are switched on.
        if self.training and torch.is_grad_enabled():
            self.readings.add(routings, valid_BS)
        return ModelOutput(self.lm_head(self.norm(x_BSD)), tuple(routings))

    @property
    def routers(self) -> list[Router]:
        """Every router, in forward order."""
        routers = [module for module in self.modules() if isinstance(module, Router)]
        if len(routers) != len(self.config.moe_layers):
            raise RuntimeError(
                f"{len(routers)} routers found, {len(self.config.moe_layers)} expected: a layer "
                "was wrapped in a way that hides its router."
            )
        return routers

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Normal with ``initializer_range`` for every matrix, ones for every norm.

        The router too: all-zero logits would tie, and ties send every token to the same experts.
        """
        for parameter in self.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=self.config.initializer_range, generator=generator)
            else:
                parameter.fill_(1.0)
        for router in self.routers:
            router.expert_bias.zero_()
