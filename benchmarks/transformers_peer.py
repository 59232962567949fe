"""The same model in transformers, weights copied: what benchmarks and tests compare with."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from moe_model import LanguageModel

EXPERTS = ("eager", "grouped_mm")
"""Backends of transformers that run on a CPU; the faster one counts."""


def peer(
    model: LanguageModel, experts: str = "eager", attention: str = "sdpa", **changes: Any
) -> DeepseekV3ForCausalLM:
    """``model`` in transformers, without multi-token prediction.

    Args:
        model: Its weights are copied.
        experts: Backend of the experts.
        attention: Backend of attention.
        changes: Other fields of its config.
    """
    fields = model.config.to_dict()
    rope = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
    if (scaling := fields.pop("rope_scaling")) is not None:
        rope |= {"rope_type": "llama3" if "low_freq_factor" in scaling else "yarn", **scaling}
    for ours in (
        "scoring_func", "router_jitter_noise", "capacity_factor", "drop_policy", "topk_method",
        "model_type",
    ):  # fmt: skip
        del fields[ours]
    fields["num_key_value_heads"] = model.config.num_attention_heads
    fields["rope_parameters"] = rope
    config = DeepseekV3Config(**{**fields, "rope_interleave": True, **changes})
    config._attn_implementation = attention
    config._experts_implementation = experts
    theirs = DeepseekV3ForCausalLM(config)
    weights = {
        their_name(name): tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("mtp.")
    }
    if model.config.tie_word_embeddings:
        weights["lm_head.weight"] = model.embed_tokens.weight
    theirs.load_state_dict(weights, strict=True)
    return theirs.float()


def their_name(name: str) -> str:
    """Hugging Face's name in memory of one of our tensors."""
    name = name.replace("mlp.router.weight", "mlp.gate.weight")
    name = name.replace("mlp.router.expert_bias", "mlp.gate.e_score_correction_bias")
    return name if name.startswith("lm_head") else f"model.{name}"


def gemm_peak(dtype: torch.dtype) -> float:
    """FLOP/s of the best of several square products: what this machine can do at most."""
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return 2 * 2048**3 / best
