"""The published architectures that this model implements, and their ``config.json`` conventions.

They share names and shapes of tensors. DeepSeek-V2 uses a softmax router without a bias, so it has
no ``e_score_correction_bias``; GLM-4.7-Flash lists the kind of every layer instead of the number of
dense ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from moe_model import ModelConfig, ModelType

_GLM: ModelType = "glm4_moe_lite"
_V2: ModelType = "deepseek_v2"


class Architecture(NamedTuple):
    """One of transformers' model types."""

    name: str
    """Its entry in ``architectures``."""
    rules: Mapping[str, int | float | bool]
    """transformers' defaults for absent fields."""
    always: Mapping[str, tuple[Any, ...]]
    """The supported values of a field; absent or null means the first."""


_EVERYWHERE: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",), "moe_layer_freq": (1,), "partial_rotary_factor": (1.0,),
}  # fmt: skip
_NOAUX = {**_EVERYWHERE, "scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)}

ARCHITECTURES: Mapping[ModelType, Architecture] = {
    "deepseek_v3": Architecture(
        "DeepseekV3ForCausalLM",
        {
            "first_k_dense_replace": 3, "n_group": 8, "topk_group": 4,
            "routed_scaling_factor": 2.5, "norm_topk_prob": True, "rms_norm_eps": 1e-6,
            "initializer_range": 0.02, "tie_word_embeddings": False, "attention_bias": False,
            "num_nextn_predict_layers": 1,
        },
        _NOAUX,
    ),
    _V2: Architecture(
        "DeepseekV2ForCausalLM",
        {
            "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1,
            "routed_scaling_factor": 1.0, "norm_topk_prob": False, "rms_norm_eps": 1e-6,
            "initializer_range": 0.02, "tie_word_embeddings": False, "attention_bias": False,
            "num_nextn_predict_layers": 0,
        },
        {
            **_EVERYWHERE,
            "scoring_func": ("softmax",),
            "topk_method": ("greedy", "group_limited_greedy"),
            # If true, transformers ignores it, and DeepSeek's own code divides by the sum but omits
            # the scaling factor.
            "norm_topk_prob": (False,),
            "mlp_bias": (False,),
        },
    ),
    _GLM: Architecture(
        "Glm4MoeLiteForCausalLM",
        {
            "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
            "routed_scaling_factor": 1.8, "norm_topk_prob": True, "rms_norm_eps": 1e-5,
            "initializer_range": 0.02, "tie_word_embeddings": False, "attention_bias": False,
            "num_nextn_predict_layers": 0,
        },
        _NOAUX,
    ),
}  # fmt: skip


def model_type_of(fields: Mapping[str, Any]) -> ModelType:
    """The model type of ``fields``; ``ValueError`` if it is not supported."""
    names, said = fields.get("architectures"), fields.get("model_type")
    for model_type, architecture in ARCHITECTURES.items():
        if names == [architecture.name] if names else said == model_type:
            return model_type
    known = [architecture.name for architecture in ARCHITECTURES.values()]
    raise ValueError(
        f"architectures={names}, model_type={said!r}: only {', '.join(known[:-1])} and "
        f"{known[-1]} can be imported."
    )


def in_terms_of_deepseek_v3(model_type: ModelType, fields: Mapping[str, Any]) -> dict[str, Any]:
    """``fields`` in DeepSeek-V3's convention; ``ValueError`` if they contradict each other."""
    translated = dict(fields)
    if model_type == _V2:
        if translated.get("norm_topk_prob") is None:
            translated["norm_topk_prob"] = False
        if translated.get("topk_method") in (None, "greedy"):
            translated |= {"n_group": 1, "topk_group": 1}  # groups are ignored
    if model_type == _GLM:
        translated["first_k_dense_replace"] = _dense_layers(fields)
    return translated


def layer_kinds(config: ModelConfig) -> list[str]:
    """``mlp_layer_types`` of GLM-4.7-Flash."""
    dense = config.first_k_dense_replace
    return ["dense"] * dense + ["sparse"] * (config.num_hidden_layers - dense)


def _dense_layers(fields: Mapping[str, Any]) -> int:
    """Number of leading dense layers; transformers uses ``mlp_layer_types`` only."""
    kinds, dense = fields.get("mlp_layer_types"), 1
    if kinds is not None:
        dense = kinds.count("dense") if isinstance(kinds, list) else -1
        if (
            dense < 0
            or kinds != ["dense"] * dense + ["sparse"] * (len(kinds) - dense)
            or (len(kinds) != fields.get("num_hidden_layers"))
        ):
            raise ValueError(
                f"mlp_layer_types={kinds!r} is not supported: it must be 'dense' for some of the "
                "first layers and 'sparse' for all others."
            )
    if (said := fields.get("first_k_dense_replace")) not in (None, dense):
        raise ValueError(
            f"first_k_dense_replace={said!r} contradicts mlp_layer_types={kinds!r}, where "
            f"{dense} are dense (absent: 1): remove the wrong one."
        )
    return dense
