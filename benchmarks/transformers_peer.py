"""The same model in transformers, with the same weights: what the model benchmarks compare with."""

from __future__ import annotations

import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from moe_model.model import LanguageModel

ATTENTION = "sdpa"
EXPERTS = ("eager", "grouped_mm")
"""Backends of transformers that run on a CPU; the faster one counts."""


def peer(model: LanguageModel, experts: str) -> DeepseekV3ForCausalLM:
    """``model`` in transformers; its weights are copied."""
    fields = model.config.to_dict()
    rope = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
    for name in ("rope_scaling", "scoring_func", "router_jitter_noise", "capacity_factor"):
        del fields[name]
    del fields["drop_policy"]
    heads = model.config.num_attention_heads
    config = DeepseekV3Config(
        **fields, num_key_value_heads=heads, rope_parameters=rope, rope_interleave=True
    )
    config._attn_implementation = ATTENTION
    config._experts_implementation = experts
    theirs = DeepseekV3ForCausalLM(config)
    renamed = {"mlp.router.weight": "mlp.gate.weight"}
    renamed["mlp.router.expert_bias"] = "mlp.gate.e_score_correction_bias"
    weights = {}
    for name, tensor in model.state_dict().items():
        for ours, their in renamed.items():
            name = name.replace(ours, their)
        weights[name if name.startswith("lm_head") else f"model.{name}"] = tensor
    theirs.load_state_dict(weights, strict=True)
    return theirs


def gemm_peak(dtype: torch.dtype) -> float:
    """FLOP/s of the best of several square products: what this machine can do at most."""
    import time

    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return 2 * 2048**3 / best
