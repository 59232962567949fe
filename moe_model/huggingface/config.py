"""Convert a published ``config.json`` to a ``ModelConfig`` and back.

Transformers is the reference: an absent field has its default, an unsupported value is rejected by
name, and unknown fields are ignored.

DeepSeek-V2's softmax router has no ``e_score_correction_bias``; GLM-4.7-Flash lists the kind of
every layer instead of the number of dense ones. For rotary positions, transformers 4 and the hub
use ``rope_scaling`` and ``rope_theta``, transformers 5 ``rope_parameters``: both are read, and both
are written.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from moe_model import ModelConfig, UsageError, json_object
from moe_model.config import KINDS, Llama3Scaling, ModelType, YarnScaling, fitting

_GLM: ModelType = "glm4_moe_lite"
_V2: ModelType = "deepseek_v2"

CONFIG = "config.json"
FP8_BLOCK = (128, 128)
MOST_CHARACTERS = 2**20
"""Size limit of a ``config.json``, all of which a checkpoint keeps."""

_ORIGINAL = "original_max_position_embeddings"


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
    "rope_interleave": (True,),
}  # fmt: skip
_NOAUX = {**_EVERYWHERE, "scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)}

_RULES: Mapping[str, int | float | bool] = {
    "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0,
    "norm_topk_prob": True, "rms_norm_eps": 1e-6, "initializer_range": 0.02,
    "tie_word_embeddings": False, "attention_bias": False, "num_nextn_predict_layers": 0,
}  # fmt: skip
ARCHITECTURES: Mapping[ModelType, Architecture] = {
    "deepseek_v3": Architecture(
        "DeepseekV3ForCausalLM",
        {
            **_RULES, "first_k_dense_replace": 3, "n_group": 8, "topk_group": 4,
            "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1,
        },
        _NOAUX,
    ),
    _V2: Architecture(
        "DeepseekV2ForCausalLM",
        {**_RULES, "norm_topk_prob": False},
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
        {**_RULES, "first_k_dense_replace": 1, "routed_scaling_factor": 1.8, "rms_norm_eps": 1e-5},
        _NOAUX,
    ),
}  # fmt: skip


def model_type_of(fields: Mapping[str, Any]) -> ModelType:
    """By ``architectures`` where the file has it, else by ``model_type``.

    ``ValueError`` if neither names a model that can be imported.
    """
    names, named = fields.get("architectures"), fields.get("model_type")
    for model_type, architecture in ARCHITECTURES.items():
        if names == [architecture.name] if names else named == model_type:
            return model_type
    known = [architecture.name for architecture in ARCHITECTURES.values()]
    raise ValueError(
        f"architectures={names}, model_type={named!r}: only {', '.join(known[:-1])} and "
        f"{known[-1]} can be imported."
    )


class Published(NamedTuple):
    """The contents of a ``config.json``."""

    config: ModelConfig
    fp8_block: tuple[int, int] | None
    """Block size (rows, columns) of FP8 scales; ``None`` without FP8."""
    fields: dict[str, Any]


_SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "moe_intermediate_size",
    "n_routed_experts", "num_experts_per_tok", "num_attention_heads", "kv_lora_rank",
    "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "max_position_embeddings",
)  # fmt: skip
"""Required fields."""


def read_config(path: Path) -> Published:
    """Read and check a ``config.json``; ``UsageError`` names the file and the wrong field."""
    try:
        return _published(json_object("it", path.read_bytes()))
    except (OSError, ValueError, OverflowError) as error:
        raise UsageError(f"{path}: {error}") from error


def _published(fields: dict[str, Any]) -> Published:
    model_type = model_type_of(fields)
    kind = ARCHITECTURES[model_type]
    theta, scaling = read_rope(fields)
    ahead = fields.get("num_mtp_layers", kind.rules["num_nextn_predict_layers"])
    rules = {**kind.rules, "num_nextn_predict_layers": ahead, **fields}
    topk_method = fields.get("topk_method") or kind.always["topk_method"][0]
    if topk_method == "greedy":
        rules |= {"n_group": 1, "topk_group": 1}  # groups are ignored
    if model_type == _GLM:
        # All that transformers reads. Another list than that of the layers lacks tensors.
        kinds = fields.get("mlp_layer_types")
        rules["first_k_dense_replace"] = kinds.count("dense") if isinstance(kinds, list) else 1
    _check_values(fields, kind.always)
    numbers = {field: number(fields, field, int) for field in _SIZES}
    numbers |= {field: number(rules, field, type(usual)) for field, usual in kind.rules.items()}
    for field, absent in (("q_lora_rank", None), ("n_shared_experts", 0)):
        numbers[field] = absent
        if fields.get(field, 0) is not None:
            numbers[field] = number(fields, field, int)
    config = ModelConfig(
        **numbers,
        rope_theta=theta,
        rope_scaling=scaling,
        scoring_func=kind.always["scoring_func"][0],
        topk_method=topk_method,
        model_type=model_type,
    )
    heads = config.num_attention_heads
    same = {"num_key_value_heads": heads, "num_mtp_layers": config.num_nextn_predict_layers}
    same |= {"head_dim": config.qk_rope_head_dim, "qk_head_dim": config.qk_head_dim}
    _check_values(fields, {name: (value,) for name, value in same.items()})
    if len(json.dumps(fields, allow_nan=False)) > MOST_CHARACTERS:
        raise ValueError(f"it has more than {MOST_CHARACTERS} characters: download it again.")
    return Published(config, _read_block(fields), fields)


def _check_values(fields: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]) -> None:
    for field, values in allowed.items():
        if (found := fields.get(field)) is not None and found not in values:
            verb = "is" if len(values) == 1 else "are"
            only = " and ".join(map(repr, values))
            raise ValueError(f"{field}={found!r} is not supported: only {only} {verb}.")


def _read_block(fields: dict[str, Any]) -> tuple[int, int] | None:
    quantization = fields.get("quantization_config")
    if quantization is None:
        return None
    found = {"weight_block_size": [*FP8_BLOCK], "fmt": "e4m3", "quant_method": None}
    if isinstance(quantization, dict):
        found |= quantization
    block = found["weight_block_size"]
    if (found["quant_method"], found["fmt"]) != ("fp8", "e4m3"):
        raise ValueError(
            f"quantization_config={quantization} is not supported: only quant_method='fp8' with "
            "fmt='e4m3' is; use an unquantised copy."
        )
    match block:
        case [int(rows), int(columns)] if min(block) > 0 and bool not in map(type, block):
            return rows, columns
    raise ValueError(
        f"quantization_config.weight_block_size={block} is not supported: it must be two numbers "
        "of rows and columns, such as [128, 128]."
    )


def published_fields(config: ModelConfig) -> dict[str, Any]:
    """The ``config.json`` of ``config``, without the fields of the tokenizer and the weights.

    ``UsageError`` if transformers' class cannot represent this model.
    """
    kind = ARCHITECTURES[config.model_type]
    impossible = [
        f"{name}={getattr(config, name)!r}: it has {' or '.join(map(str, values))}"
        for name, values in kind.always.items()
        if getattr(config, name, values[0]) not in values
    ]
    if isinstance(yarn := config.rope_scaling, YarnScaling):
        strengths = (yarn.mscale, yarn.mscale_all_dim)
        if 0 in strengths and strengths != (1, 0):
            impossible.append(f"rope_scaling={yarn}: it has two strengths above 0")
    if config.topk_method == "noaux_tc" and config.n_routed_experts < 2 * config.n_group:
        impossible.append(
            f"n_routed_experts={config.n_routed_experts}: it has at least two per group"
        )
    if impossible:
        raise UsageError(
            f"{impossible[0]}; {kind.name} of transformers cannot be this model, so it cannot be "
            "exported."
        )
    names = (*_SIZES, *kind.rules, "q_lora_rank", "n_shared_experts", "scoring_func")
    plain = {name: getattr(config, name) for name in (*names, "topk_method")}
    if config.model_type == _GLM:
        dense = ["dense"] * config.first_k_dense_replace
        plain["mlp_layer_types"] = [*dense, *["sparse"] * len(config.moe_layers)]
    return {
        "architectures": [kind.name],
        "model_type": config.model_type,
        "hidden_act": "silu",
        "moe_layer_freq": 1,
        **plain,
        **rope_fields(config),
        "num_key_value_heads": config.num_attention_heads,
        "rope_interleave": True,
    }


def read_rope(fields: dict[str, Any]) -> tuple[float, YarnScaling | Llama3Scaling | None]:
    """``rope_theta`` and the context extension, ``None`` if there is none.

    Args:
        fields: Those of a ``config.json``, with the extension in ``rope_scaling``, in
            ``rope_parameters``, or the same in both.

    Raises:
        ValueError: If a field is invalid or not supported, or the two contradict each other.
    """
    rope = _merged_rope(fields)
    theta: float = number({"rope_theta": 10_000.0, **rope}, "rope_theta", float)
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return theta, None
    if kind not in ("yarn", "llama3"):
        raise ValueError(f"rope_type={kind!r} is not supported: only default, yarn and llama3 are.")
    for name, only in (("truncate", True), ("partial_rotary_factor", 1.0)):
        if rope.get(name, only) != only:
            raise ValueError(f"rope {name}={rope[name]!r} is not supported: only {only} is.")
    known = {name: value for name, value in rope.items() if value is not None}
    known[_ORIGINAL] = number(
        {_ORIGINAL: fields.get("max_position_embeddings"), **known, **fields}, _ORIGINAL, int
    )
    return theta, _llama3(known) if kind == "llama3" else _yarn(known)


def _merged_rope(fields: dict[str, Any]) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_theta": fields["rope_theta"]} if "rope_theta" in fields else {}
    for source in ("rope_scaling", "rope_parameters"):
        given = fields.get(source)
        if not isinstance(given, dict | None):
            raise ValueError(f"{source}={given!r} is neither an object nor null.")
        for name, value in (given or {}).items():
            name = "rope_type" if name == "type" else name
            if rope.setdefault(name, value) != value:
                raise ValueError(
                    f"{source}.{name}={value!r} contradicts {name}={rope[name]!r} elsewhere in the "
                    "file: remove the wrong one."
                )
    return rope


def _llama3(known: dict[str, Any]) -> Llama3Scaling:
    factors = ("factor", "low_freq_factor", "high_freq_factor")
    llama3 = {name: number(known, name, float) for name in factors}
    return Llama3Scaling(**llama3, original_max_position_embeddings=known[_ORIGINAL])


def _yarn(known: dict[str, Any]) -> YarnScaling:
    names = ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
    yarn = {name: number(known, name, float) for name in names if name in known}
    if not yarn.get("factor", 0) >= 1:
        raise ValueError(f"rope factor={known.get('factor')!r} is not a number of 1 or more.")
    over = yarn.get("mscale", 0.0)
    under = yarn.get("mscale_all_dim", 0.0)
    # In transformers the rotated parts are scaled by the quotient only if both are given and not 0,
    # otherwise by m(1); here always by the quotient.
    if "attention_factor" in known or (under and not over):
        raise ValueError(
            f"rope attention_factor={known.get('attention_factor')}, mscale={over}, mscale_all_dim="
            f"{under} are not supported: only the quotient of both strengths is."
        )
    return YarnScaling(
        factor=yarn["factor"],
        original_max_position_embeddings=known[_ORIGINAL],
        beta_fast=yarn.get("beta_fast") or 32.0,
        beta_slow=yarn.get("beta_slow") or 1.0,
        mscale=over if under else 1.0,
        mscale_all_dim=under,
    )


def rope_fields(config: ModelConfig) -> dict[str, Any]:
    """What :func:`read_rope` reads, under the names of old and new versions of transformers."""
    rope: dict[str, Any] = {"rope_type": "default"}
    if (scaling := config.rope_scaling) is not None:
        # Transformers 4 warns if one of these is an integer.
        rope = {name: float(value) for name, value in dataclasses.asdict(scaling).items()}
        kind = "yarn" if isinstance(scaling, YarnScaling) else "llama3"
        rope |= {"rope_type": kind, "type": kind, _ORIGINAL: int(rope[_ORIGINAL])}
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": rope if scaling is not None else None,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
    }


def number(fields: dict[str, Any], name: str, kind: type) -> Any:
    """``fields[name]`` as a ``kind``; ``ValueError`` if it is missing or of another type."""
    if name not in fields:
        raise ValueError(f"{name} is missing: it must be {KINDS[kind]}.")
    return fitting(name, fields[name], kind)
