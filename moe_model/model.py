"""The language model: embedding, pre-norm decoder layers, norm, head (DeepSeek-V3, section 2), and
multi-token prediction (section 2.2).

The first layers have a dense feed-forward, the others one shared and many routed experts. Parameter
names follow Hugging Face's ``DeepseekV3ForCausalLM``, except ``router`` for ``gate``.

Depth k of multi-token prediction takes the hidden state of depth k − 1 and the embedding of token
i + k, and its output goes through the head of the main model to predict token i + k + 1. It
improves the training of the main model, and drafts tokens in generation. Where the sources differ,
this follows the released weights and inference engines: the projection sees **[embedding, hidden]**
(the paper has hidden first), and the hidden state is that **after** the final norm, as in
transformers, vLLM and SGLang (torchtitan takes it from before the norm).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from moe_model.attention import (
    LatentCache,
    MultiHeadLatentAttention,
    Remember,
    rotary_table,
    visible_in_documents,
)
from moe_model.config import ModelConfig
from moe_model.experts import Experts, FeedForward
from moe_model.fused import RMSNorm
from moe_model.router import Router, Routing

MOST_LOGITS = 2**27
"""Logits per chunk, 512 MB in fp32. A batch that fits is one chunk without recomputation, as in
all presets but ``deepseek-v3``."""


class MixtureOfExperts(nn.Module):
    """``shared(x) + sum_k weight_k · expert_k(x)``; the shared expert is not gated or scaled."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.router = Router(config)
        self.experts = Experts(config)
        self.shared_experts: FeedForward | None = None
        if shared_width := config.n_shared_experts * config.moe_intermediate_size:
            self.shared_experts = FeedForward(config.hidden_size, shared_width)

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, Routing]:
        """The output ``(B, S, D)``, and the decision of the router over the B·S tokens."""
        x_TD = x_BSD.flatten(0, 1)
        routing = self.router(x_TD)
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
        remember: Remember | None = None,
        visible_BSN: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """The stream, then the fields of a ``Routing`` if this layer has a router: every kind of
        activation checkpointing supports a flat tuple of tensors."""
        x_BSD = x_BSD + self.self_attn(self.input_layernorm(x_BSD), rotary, remember, visible_BSN)
        y_BSD = self.post_attention_layernorm(x_BSD)
        if isinstance(self.mlp, MixtureOfExperts):
            y_BSD, routing = self.mlp(y_BSD)
            return (x_BSD + y_BSD, *routing)
        return (x_BSD + self.mlp(y_BSD),)


class PredictionDepth(nn.Module):
    """One more depth: combine, one decoder layer with experts, norm. Names as Hugging Face's."""

    def __init__(self, config: ModelConfig, depth: int) -> None:
        super().__init__()
        D = config.hidden_size
        self.enorm = RMSNorm(D, config.rms_norm_eps)
        self.hnorm = RMSNorm(D, config.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * D, D, bias=False)
        self.layer = DecoderLayer(config, config.num_hidden_layers + depth)
        self.norm = RMSNorm(D, config.rms_norm_eps)

    def forward(
        self,
        hidden_BSD: Tensor,
        embedding_BSD: Tensor,
        rotary: tuple[Tensor, Tensor],
        remember: Remember | None = None,
        visible_BSN: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """The hidden state of this depth after its norm, and the fields of a ``Routing``.

        ``hidden_BSD`` is the normed one of the depth before at positions i, ``embedding_BSD`` is of
        the tokens at i + k, where k counts from 1. The angles are those of the positions i:
        attention only sees differences of positions.
        """
        both = torch.cat((self.enorm(embedding_BSD), self.hnorm(hidden_BSD)), dim=-1)
        x_BSD, *routing = self.layer(self.eh_proj(both), rotary, remember, visible_BSN)
        return (self.norm(x_BSD), *routing)


class ModelOutput(NamedTuple):
    logits_BSV: Tensor
    """Next-token logits at every position; empty, ``(B, 0, V)``, if losses are computed instead."""
    routings: tuple[Routing, ...]
    """The decisions of each router, in forward order, over the B·S tokens."""
    hidden_BSD: Tensor
    """The input of the head: the last hidden state after its norm."""
    ahead_logits: tuple[Tensor, ...]
    """For each depth k of multi-token prediction: logits of the token k + 1 positions ahead,
    (B, S, V)."""
    losses: tuple[Tensor, ...] = ()
    """With targets: summed cross-entropy of the next token, then of each depth."""


class LanguageModel(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, depth) for depth in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head: nn.Linear | None = None
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.mtp = nn.ModuleList(
            PredictionDepth(config, depth) for depth in range(config.num_nextn_predict_layers)
        )
        self._ahead_is_frozen = False
        self.recompute = False
        """Activation checkpointing: in training, keep only the input of each layer and recompute
        the rest in the backward pass."""
        self.sharded = False
        """Whether every process holds a part of the weights: all take part in a forward pass."""
        self.init_weights()

    def forward(
        self,
        ids_BS: Tensor,
        *,
        next_ids: Tensor | None = None,
        targets: Sequence[Tensor] = (),
        starts_BS: Tensor | None = None,
        cache: LatentCache | None = None,
    ) -> ModelOutput:
        """Logits for every position, or losses.

        Args:
            next_ids: ``(B, S + D - 1)``, the tokens from the second on: the D depths of multi-token
                prediction run only with them.
            targets: What to predict, ``(B, S)``, -100 to ignore: next token first, then one tensor
                per depth that runs. Losses replace the logits, which never exist all at once.
            starts_BS: Where a document begins, which attends to nothing before.
            cache: The past; these tokens are appended.
        """
        length = ids_BS.shape[1]
        start = 0 if cache is None else cache.used
        position_S = torch.arange(start, start + length, device=ids_BS.device)
        rotary = rotary_table(self.config, position_S)
        visible_BSN = None if starts_BS is None else visible_in_documents(starts_BS)
        x_BSD = self.embed_tokens(ids_BS)
        routings = []
        for depth, layer in enumerate(self.layers):
            remember = None if cache is None else partial(cache.append, depth)
            x_BSD, *routing = self._through(layer, x_BSD, rotary, remember, visible_BSN)
            if routing:
                routings.append(Routing(*routing))
        hidden_BSD = self.norm(x_BSD)
        if cache is not None:
            cache.used += length

        ahead_BSD = hidden_BSD
        seen = [hidden_BSD]
        for depth, predict in enumerate(self.mtp if next_ids is not None else ()):
            assert next_ids is not None
            embedding_BSD = self.embed_tokens(next_ids[:, depth : depth + length])
            ahead_BSD, *routing = self._through(
                predict, ahead_BSD, embedding_BSD, rotary, None, visible_BSN
            )
            routings.append(Routing(*routing))
            seen.append(ahead_BSD)

        if not targets:
            logits, *ahead_logits = [self.head(x_BSD) for x_BSD in seen]
            return ModelOutput(logits, tuple(routings), hidden_BSD, tuple(ahead_logits))
        no_logits = self.head(hidden_BSD[:, :0])
        losses = [
            summed_cross_entropy(x_BSD, self.head_weight, targets_BS)
            for x_BSD, targets_BS in zip(seen, targets, strict=True)
        ]
        return ModelOutput(no_logits, tuple(routings), hidden_BSD, (), tuple(losses))

    def _through(self, layer: nn.Module, *inputs: Any) -> Any:
        """``layer(*inputs)``; with activation checkpointing the choice of experts and the order of
        dropped pairs are kept: on a GPU a near-tie could be decided differently."""
        if not (self.recompute and self.training and torch.is_grad_enabled()):
            return layer(*inputs)
        return checkpoint(layer, *inputs, use_reentrant=False, context_fn=_KEEP_CHOICES)

    def head(self, hidden_BSD: Tensor) -> Tensor:
        """Logits ``(…, V)`` of hidden states ``(…, D)``, which are normed already."""
        return F.linear(hidden_BSD, self.head_weight)

    @property
    def decoder_layers(self) -> list[DecoderLayer]:
        """All layers in order, without multi-token prediction."""
        return [layer for layer in self.layers if isinstance(layer, DecoderLayer)]

    @property
    def head_weight(self) -> Tensor:
        """Weight of the output head ``(V, D)``, the embedding's where they are tied."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    @property
    def routers(self) -> list[Router]:
        """Those that are trained, in forward order: multi-token prediction may be frozen."""
        trained = self.layers if self._ahead_is_frozen else self
        return [module for module in trained.modules() if isinstance(module, Router)]

    @property
    def router_depths(self) -> tuple[int, ...]:
        """The 0-based depth of each of :attr:`routers`, multi-token prediction after all layers."""
        return self.config.router_depths[: len(self.routers)]

    def freeze_ahead(self) -> None:
        """Freeze multi-token prediction, no longer in :attr:`routers`: no forward pass may request
        it."""
        self.mtp.requires_grad_(False)
        self._ahead_is_frozen = True

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Normal with ``initializer_range`` for every matrix, ones for every norm, no biases.

        The router too: all-zero logits would tie, and ties send every token to the same experts.
        What expands a latent of rank R gets it times √(D/R): queries, keys and values then begin as
        large as if they were projected from the stream itself.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                std = self.config.initializer_range
                if name.endswith(("q_b_proj.weight", "kv_b_proj.weight")):
                    std *= (self.config.hidden_size / parameter.shape[1]) ** 0.5
                parameter.normal_(std=std, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith(".bias") else 1.0)
        for router in self.routers:
            router.expert_bias.zero_()


_KEEP_CHOICES = partial(
    create_selective_checkpoint_contexts, [torch.ops.aten.topk.default, torch.ops.aten.sort.stable]
)


def summed_cross_entropy(hidden_BSD: Tensor, head_VD: Tensor, targets_BS: Tensor) -> Tensor:
    """Sum over all targets, in nats, fp32; target -100 ignores a position.

    Logits are the largest tensor of a training step (32,768 tokens times a vocabulary of 129,280
    are 17 GB in fp32), so they are computed in chunks of tokens, and again in the backward pass.
    """
    hidden_TD, targets_T = hidden_BSD.flatten(0, 1), targets_BS.flatten()
    rows = max(1, MOST_LOGITS // len(head_VD))
    if len(targets_T) <= rows:
        return _cross_entropy(hidden_TD, head_VD, targets_T)
    total = torch.zeros((), device=hidden_BSD.device)
    parts = zip(torch.split(hidden_TD, rows), torch.split(targets_T, rows), strict=True)
    for some_TD, some_T in parts:
        total = total + checkpoint(_cross_entropy, some_TD, head_VD, some_T, use_reentrant=False)
    return total


def _cross_entropy(hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor) -> Tensor:
    logits_TV = F.linear(hidden_TD, head_VD).float()
    return F.cross_entropy(logits_TV, targets_T, reduction="sum")
