"""What the questions share: dense models and mixtures that begin alike, trained in one way."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_model import LanguageModel, ModelConfig
from moe_model.balance import bias_rate_at, update_expert_bias
from moe_model.experts import FeedForward
from moe_model.training.batches import IGNORED
from moe_model.training.options import Options
from moe_model.training.step import learning_rate_at, make_optimizer, set_learning_rate

RECIPE = {
    "hidden_size": 64, "num_hidden_layers": 2, "first_k_dense_replace": 0,
    "num_experts_per_tok": 2, "n_shared_experts": 0, "num_attention_heads": 4, "kv_lora_rank": 32,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16, "initializer_range": 0.125,
    "lr_schedule": "wsd", "decay": 0.3, "min_lr": 0.02, "weight_decay": 0.1,
    "bias_update_rate": 1e-3, "router_lr": 0.1,
}  # fmt: skip
"""Fields of ``ModelConfig`` and ``Options`` that a question may replace."""

Examples = Iterable[tuple[Tensor, Tensor]]
"""Batches of token ids and targets, ``(B, S)`` each; target -100 is ignored."""


def build(recipe: dict[str, Any], experts: int, seed: int) -> LanguageModel:
    """With so many experts in every layer, or dense (0); otherwise the same weights for a seed."""
    width, K = recipe["intermediate_size"], recipe["num_experts_per_tok"]
    fields = {"moe_intermediate_size": width // K, "n_routed_experts": experts or K}
    config = ModelConfig(**_fields(ModelConfig, recipe), **fields)
    dense = LanguageModel(config)
    for layer in dense.decoder_layers:
        layer.mlp = FeedForward(config.hidden_size, width)
    dense.init_weights(torch.Generator().manual_seed(seed))
    if experts == 0:
        return dense
    mixture = LanguageModel(config)
    mixture.init_weights(torch.Generator().manual_seed(seed))
    mixture.load_state_dict(dense.state_dict(), strict=False)
    return mixture


def train(recipe: dict[str, Any], experts: int, seed: int, examples: Examples) -> LanguageModel:
    """One optimizer step for each batch, on the mean loss of its targets."""
    options = Options(**_fields(Options, recipe))
    model = build(recipe, experts, seed).train()
    optimizer = make_optimizer(model, options)
    for step, (ids_BS, targets_BS) in enumerate(examples, 1):
        set_learning_rate(optimizer, learning_rate_at(step, options))
        output = model(ids_BS, targets=[targets_BS])
        (output.losses[0] / (targets_BS != IGNORED).sum()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        optimizer.step()
        optimizer.zero_grad()
        if experts:
            ids = [routing.expert_ids_TK.flatten() for routing in output.routings]
            counts_LE = torch.stack([one.bincount(minlength=experts) for one in ids])
            rate = bias_rate_at(step, options.steps, options.bias_update_rate)
            update_expert_bias(model.routers, counts_LE, rate)
    return model.eval()


def _fields(cls: type, recipe: dict[str, Any]) -> dict[str, Any]:
    return {f.name: recipe[f.name] for f in dataclasses.fields(cls) if f.name in recipe}


@torch.no_grad()
def losses(model: LanguageModel, examples: Examples) -> Tensor:
    """Mean cross-entropy of the targets at every position, ``(S,)``, in nats."""
    total_S, targets_S = torch.zeros(()), torch.zeros(())
    for ids_BS, targets_BS in examples:
        logits_BVS = model(ids_BS).logits_BSV.mT
        total_S = total_S + F.cross_entropy(logits_BVS, targets_BS, reduction="none").sum(dim=0)
        targets_S = targets_S + (targets_BS != IGNORED).sum(dim=0)
    return total_S / targets_S
