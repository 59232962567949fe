"""The published architectures that are this model, and how each says so in its ``config.json``.

They share names and shapes of tensors. DeepSeek-V2 routes by a softmax without a bias, so it has no
``e_score_correction_bias``; GLM-4.7-Flash names the kind of every layer instead of counting the
dense ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from moe_model.config import ModelConfig, ModelType

_GLM: ModelType = "glm4_moe_lite"
_V2: ModelType = "deepseek_v2"


class Architecture(NamedTuple):
    """One of transformers' models."""

    name: str
    """As in ``architectures``."""
    rules: Mapping[str, int | float | bool]
    """What transformers takes where the file says nothing."""
    always: Mapping[str, tuple[Any, ...]]
    """The values a field may have; absent or null says the first."""


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
            # Where it is true, transformers does nothing, and DeepSeek's own code divides by the
            # sum but leaves the scaling factor out.
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
    """Which of them ``fields`` is of; ``ValueError`` where it is none."""
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
    """``fields`` as DeepSeek-V3 would say the same; ``ValueError`` where they contradict."""
    told = dict(fields)
    if model_type == _V2:
        if told.get("norm_topk_prob") is None:
            told["norm_topk_prob"] = False
        if told.get("topk_method") in (None, "greedy"):
            told |= {"n_group": 1, "topk_group": 1}  # whatever they say, groups are not looked at
    if model_type == _GLM:
        told["first_k_dense_replace"] = _dense_layers(fields)
    return told


def layer_kinds(config: ModelConfig) -> list[str]:
    """``mlp_layer_types``, as GLM-4.7-Flash has it."""
    dense = config.first_k_dense_replace
    return ["dense"] * dense + ["sparse"] * (config.num_hidden_layers - dense)


def _dense_layers(fields: Mapping[str, Any]) -> int:
    """How many of the first layers are dense; transformers looks at ``mlp_layer_types`` alone."""
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
