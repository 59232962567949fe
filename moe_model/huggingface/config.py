"""Convert a published ``config.json`` to a ``ModelConfig`` and back.

The behaviour of transformers is the reference: an absent field has transformers' default, a field
with an unsupported value is rejected by name, and unknown fields are ignored, since published
configs contain many.

:mod:`moe_model.huggingface.model_types` has the differences of the model types,
:mod:`moe_model.huggingface.rope` the positions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from moe_model import ModelConfig
from moe_model.huggingface.model_types import (
    ARCHITECTURES,
    in_terms_of_deepseek_v3,
    layer_kinds,
    model_type_of,
)
from moe_model.huggingface.rope import number, read_rope, rope_fields

CONFIG = "config.json"
FP8_BLOCK = (128, 128)
MOST_CHARACTERS = 2**20
"""Size limit of a ``config.json``, all of which a checkpoint keeps."""


class HuggingFaceError(ValueError):
    """A folder cannot be imported, or a model cannot be exported; the message has what to do."""


class Published(NamedTuple):
    """The contents of a ``config.json``."""

    config: ModelConfig
    """The model."""
    interleaved: bool
    """Whether rotary pairs are interleaved, (0, 1), (2, 3) …, as here, or halves."""
    fp8_block: tuple[int, int] | None
    """Block size (rows, columns) of FP8 scales; ``None`` without FP8."""
    fields: dict[str, Any]
    """All fields."""


_SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "moe_intermediate_size",
    "n_routed_experts", "num_experts_per_tok", "num_attention_heads", "kv_lora_rank",
    "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "max_position_embeddings",
)  # fmt: skip
"""Required fields."""


def read_config(path: Path) -> Published:
    """Read ``path``; ``HuggingFaceError`` names the field that is wrong or not supported."""
    try:
        fields = json.loads(path.read_bytes())
    except OSError as error:
        raise HuggingFaceError(
            f"{path} cannot be read ({error.strerror}): name a folder with a published model."
        ) from error
    except (ValueError, RecursionError) as error:
        raise HuggingFaceError(f"{path} is not JSON ({error}): download it again.") from error
    if not isinstance(fields, dict):
        raise HuggingFaceError(f"{path} is not a JSON object: download it again.")
    try:
        return _published(fields)
    except (ValueError, OverflowError) as error:
        raise HuggingFaceError(f"{path}: {error}") from error


def _published(fields: dict[str, Any]) -> Published:
    model_type = model_type_of(fields)
    kind, translated = ARCHITECTURES[model_type], in_terms_of_deepseek_v3(model_type, fields)
    theta, scaling = read_rope(fields)
    plain_query = fields.get("q_lora_rank", 0) is None
    not_shared = fields.get("n_shared_experts", 0) is None
    ahead = fields.get("num_mtp_layers", kind.rules["num_nextn_predict_layers"])
    rules = {**kind.rules, "num_nextn_predict_layers": ahead, **translated}
    _check_values(fields, kind.always)
    config = ModelConfig(
        **{field: number(fields, field, int) for field in _SIZES},
        **{field: number(rules, field, type(default)) for field, default in kind.rules.items()},
        q_lora_rank=None if plain_query else number(fields, "q_lora_rank", int),
        n_shared_experts=0 if not_shared else number(fields, "n_shared_experts", int),
        rope_theta=theta,
        rope_scaling=scaling,
        scoring_func=kind.always["scoring_func"][0],
        topk_method=translated.get("topk_method") or kind.always["topk_method"][0],
        model_type=model_type,
    )
    heads = config.num_attention_heads
    same = {"num_key_value_heads": heads, "num_mtp_layers": config.num_nextn_predict_layers}
    same |= {"head_dim": config.qk_rope_head_dim, "qk_head_dim": config.qk_head_dim}
    _check_values(fields, {name: (value,) for name, value in same.items()})
    interleaved = number({"rope_interleave": True, **fields}, "rope_interleave", bool)
    if len(json.dumps(fields, allow_nan=False)) > MOST_CHARACTERS:
        raise ValueError(f"it has more than {MOST_CHARACTERS} characters: download it again.")
    return Published(config, interleaved, _read_block(fields), fields)


def _check_values(fields: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]) -> None:
    for field, values in allowed.items():
        if (found := fields.get(field)) is not None and found not in values:
            only = f"{' and '.join(map(repr, values))} {'is' if len(values) == 1 else 'are'}"
            raise ValueError(f"{field}={found!r} is not supported: only {only}.")


def _read_block(fields: dict[str, Any]) -> tuple[int, int] | None:
    """The block size of FP8 scales, if weights are stored as FP8."""
    quantization = fields.get("quantization_config")
    if quantization is None:
        return None
    found = quantization if isinstance(quantization, dict) else {}
    method, block = found.get("quant_method"), found.get("weight_block_size", list(FP8_BLOCK))
    if method != "fp8" or found.get("fmt", "e4m3") != "e4m3":
        raise ValueError(
            f"quantization_config={quantization} is not supported: only quant_method='fp8' with "
            "fmt='e4m3' is; use an unquantised copy."
        )
    sizes = [n for n in block if type(n) is int and n > 0] if isinstance(block, list) else []
    if len(sizes) != 2 or len(block) != 2:
        raise ValueError(
            f"quantization_config.weight_block_size={block} is not supported: it must be two "
            "numbers of rows and columns, such as [128, 128]."
        )
    return sizes[0], sizes[1]


def published_fields(config: ModelConfig) -> dict[str, Any]:
    """The ``config.json`` for ``config``, without the fields of the tokenizer and the weights.

    Raises:
        HuggingFaceError: If transformers' class cannot represent this model.
    """
    kind = ARCHITECTURES[config.model_type]
    alone = config.topk_method == "noaux_tc" and config.n_routed_experts < 2 * config.n_group
    other = [
        f"{name}={getattr(config, name)!r}: it has {' or '.join(map(str, values))}"
        for name, values in kind.always.items()
        if getattr(config, name, values[0]) not in values
    ]
    for impossible, said in (
        (bool(other), "".join(other[:1])),
        (alone, f"n_routed_experts={config.n_routed_experts}: it has at least two a group"),
    ):
        if impossible:
            raise HuggingFaceError(
                f"{said}; {kind.name} of transformers cannot be this model, so it cannot be "
                "exported."
            )
    names = (*_SIZES, *kind.rules, "q_lora_rank", "n_shared_experts", "scoring_func")
    plain = {name: getattr(config, name) for name in (*names, "topk_method")}
    if config.model_type == "glm4_moe_lite":
        plain["mlp_layer_types"] = layer_kinds(config)
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


_NOT_KEPT = {"auto_map", "num_mtp_layers", "quantization_config", "transformers_version"}
"""Fields an export drops: custom code, aliases of our fields, facts about the imported files."""


def kept_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The imported ``config.json`` fields that an export keeps; its own fields override them."""
    return {n: v for n, v in fields.items() if n not in _NOT_KEPT and not n.startswith("_")}
