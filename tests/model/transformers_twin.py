"""The same model in transformers, weights copied in memory: the oracle of the parity tests."""

from __future__ import annotations

from typing import Any

from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from moe_model.model import LanguageModel

SHAPE = {
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "v_head_dim": 12,
    "routed_scaling_factor": 2.5,
}
"""Four groups are possible, and a swapped split of keys and values shows."""


def their_name(name: str) -> str:
    """Hugging Face's name in memory of one of our tensors."""
    name = name.replace("mlp.router.weight", "mlp.gate.weight")
    name = name.replace("mlp.router.expert_bias", "mlp.gate.e_score_correction_bias")
    return name if name.startswith("lm_head") else f"model.{name}"


def twin(model: LanguageModel, **changes: Any) -> DeepseekV3ForCausalLM:
    """The same model in transformers; ``changes`` are other fields of its config."""
    fields = model.config.to_dict()
    rope = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
    if (yarn := fields.pop("rope_scaling")) is not None:
        rope |= {"rope_type": "yarn", **yarn}
    for ours in ("scoring_func", "router_jitter_noise", "capacity_factor", "drop_policy"):
        del fields[ours]
    fields["num_key_value_heads"] = model.config.num_attention_heads
    fields["rope_parameters"] = rope
    config = DeepseekV3Config(**{**fields, "rope_interleave": True, **changes})
    config._attn_implementation = "eager"
    theirs = DeepseekV3ForCausalLM(config)
    weights = {
        their_name(name): tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("mtp.")
    }
    if fields["tie_word_embeddings"]:
        weights["lm_head.weight"] = model.embed_tokens.weight
    theirs.load_state_dict(weights, strict=True)
    return theirs.float()
