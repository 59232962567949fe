"""Every MoE family of the installed transformers as a model of a few thousand parameters.

The default configuration of a family, with its sizes replaced by small ones. What a family needs
beyond that is one entry in ``OWN``.
"""

import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

VOCABULARY = 97
PAD = 1
LAYERS = 4

_SIZES: list[tuple[float, str]] = [
    (VOCABULARY, "vocab_size unpadded_vocab_size vocab_size_per_layer_input"),
    (PAD, "pad_token_id decoder_start_token_id"),
    (2, "bos_token_id eos_token_id sep_token_id eod_token_id"),
    (128, "max_position_embeddings"),
    (32, "hidden_size d_model text_hidden_size embed_dim"),
    (24, """intermediate_size moe_intermediate_size d_ff ffn_hidden_size expert_ffn_hidden_size
        intermediate_size_mlp shared_expert_intermediate_size share_expert_dim
        dense_intermediate_size moe_shared_expert_intermediate_size shared_intermediate_size
        shared_experts_intermediate_size moe_hidden_size encoder_ffn_dim decoder_ffn_dim
        mlp_dim"""),
    (LAYERS, """num_hidden_layers num_layers n_layers depth encoder_layers decoder_layers
        num_decoder_layers"""),
    (4, """num_attention_heads num_heads n_heads encoder_attention_heads decoder_attention_heads
        swa_num_attention_heads num_sliding_attention_heads linear_num_heads linear_num_value_heads
        mamba_n_heads mamba_num_heads index_n_heads zero_expert_num"""),
    (2, "num_key_value_heads swa_num_key_value_heads kv_n_heads linear_num_key_heads"),
    (8, """head_dim d_kv kv_channels v_head_dim qk_nope_head_dim qk_rope_head_dim swa_head_dim
        linear_head_dim linear_key_head_dim linear_value_head_dim index_head_dim mamba_d_head
        mamba_head_dim kv_lora_rank q_lora_rank o_lora_rank mamba_d_state ssm_state_size
        mamba_dt_rank router_hidden_size d_rel gated_norm_rank loop_gate_rank hc_lowrank"""),
    (16, "qk_head_dim sliding_window sliding_window_size attention_chunk_size"),
    (8, "chunk_size mamba_chunk_size block_size"),
    (8, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    (2, "num_experts_per_tok num_experts_per_token moe_top_k moe_topk moe_k top_k_experts"),
    (1, "first_k_dense_replace num_dense_layers moe_layer_start_index topk_group"),
    (2, "n_group num_expert_group"),
    (0.0, "layerdrop encoder_layerdrop decoder_layerdrop"),
]  # fmt: skip
SIZES: dict[str, Any] = {name: size for size, names in _SIZES for name in names.split()}


def _rope(*sections: int) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [*sections]}


OWN: dict[str, dict[str, Any]] = {
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0, "kv_n_heads": 2}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense"] + ["sparse"] * 3}},
    "unlimited_ocr": {"text_config": {"mlp_layer_types": ["dense"] + ["sparse"] * 3}},
    "doge": {"is_moe": True, "num_experts": 16},
    "gemma4": {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2},
    "muse_spark": {
        "audio_config": {"out_hidden_size": 32}, "vision_config": {"out_hidden_size": 32},
    },
    "dots1": {"n_shared_experts": 1},
    "ernie4_5_vl_moe": {"text_config": {
        "moe_intermediate_size": [24, 24], "head_dim": 16, "rope_parameters": _rope(3, 3, 2),
    }},
    "glm4v_moe": {"text_config": {"head_dim": 32, "rope_parameters": _rope(2, 3, 3)}},
    "inkling2_loop": {
        "n_layers_per_attn_res_block": 1, "loop_layer_index_start": 1,
        "loop_layer_index_end": 3, "loop_num_passes": 2,
    },
    "glm5_next": {"text_config": {"num_key_value_heads": 4, "qk_rope_head_dim": 0}},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2},
    "hy_v4_vl": {"text_config": {"rope_parameters": _rope(2, 1, 1)}},
    "kolibri1_1": {"head_dim": 16, "index_num_heads": 2},
    "lfm2_moe": {"layer_types": ["full_attention"] * LAYERS},
    "mistral4": {"num_key_value_heads": 4, "head_dim": 16},
    "nemotron_h": {
        "layers_block_type": ["full_attention", "moe", "mamba", "moe"], "n_groups": 2,
    },
    "qwen3_omni_moe": {"vision_start_token_id": 90},
    "qwen4_exp": {
        "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "switch_transformers": {"decoder_start_token_id": PAD, "num_sparse_encoder_layers": 2,
                            "num_sparse_decoder_layers": 2},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
CLASSES: dict[str, tuple[str, str]] = {
    "qwen3_omni_moe": ("qwen3_omni_moe_thinker", "Qwen3OmniMoeThinkerForConditionalGeneration"),
    "dots3_note": ("dots3_note_text", "Dots3NoteForCausalLM"),
}
"""Model type of the configuration and model class, where the automatic ones do not fit."""


@cache
def families() -> list[str]:
    """Names of all families that record router logits, as their folders are called."""
    models = Path(transformers.__file__).parent / "models"
    recorder = re.compile(r'"router_logits"\s*:\s*OutputRecorder')
    return sorted(
        path.parent.name
        for path in models.glob("*/modeling_*.py")
        if recorder.search(path.read_text(encoding="utf-8"))
    )


def build(family: str, **changes: Any) -> torch.nn.Module:
    """A tiny model of the family in training mode, seeded."""
    torch.manual_seed(0)
    model_type, class_name = CLASSES.get(family) or _automatic(family)
    config = _shrunk(CONFIG_MAPPING[model_type], OWN.get(family, {}) | changes)
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    model: torch.nn.Module = getattr(module, class_name)(config)
    _randomise(model)
    return model.train()


def _automatic(family: str) -> tuple[str, str]:
    tables = (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_MAPPING_NAMES,
    )
    for model_type in (f"{family}_text", family, family.replace("_", "-")):
        for table in tables[:1] if model_type.endswith("_text") else tables:
            if model_type in CONFIG_MAPPING_NAMES and model_type in table:
                return model_type, str(table[model_type])
    raise KeyError(f"no automatic class for {family}: add it to CLASSES")


def _shrunk(kind: type, changes: dict[str, Any]) -> Any:
    """The configuration with small sizes, those of its parts too."""
    default = kind()
    sizes = {name: SIZES[name] for name in default.to_dict() if name in SIZES}
    if "kv_lora_rank" in sizes:  # latent attention: a key for every query
        sizes["num_key_value_heads"] = 4
    parts = set(getattr(kind, "sub_configs", {}))
    for name in parts:
        inner = getattr(default, name, None)
        if inner is not None and isinstance(inner, transformers.PretrainedConfig):
            own = changes.get(name, {})
            sizes[name] = _shrunk(type(inner), own).to_dict()
    return kind(**(sizes | {k: v for k, v in changes.items() if k not in parts}))


@torch.no_grad()
def _randomise(model: torch.nn.Module) -> None:
    """Random routers, so that no choice is a tie, and biases that matter."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("tid2eid"):  # fresh ones send every token to expert 0, twice
            tensor.copy_(torch.rand(len(tensor), 8).argsort(-1)[:, : tensor.shape[1]])
        if tensor.is_floating_point() and tensor.dim() >= 1 and tensor.numel() > 1:
            if re.search(
                r"(gate|router|classifier)[^.]*\.(weight|proj\.weight|layer\.weight)$", name
            ):
                tensor.normal_(std=0.5)
            elif re.search(r"(correction_bias|expert_bias|balancing_biases)$", name):
                tensor.normal_(std=0.1)
