"""A published ``config.json`` read as a ``ModelConfig``, and a ``ModelConfig`` written as one.

What counts is what transformers computes from the file. So a rule that the file leaves out has the
default it has there, a field that says something this model is not is refused by its name, and a
field that nobody knows is passed over: published configs carry many.

Transformers 4 and the hub say ``rope_scaling`` and ``rope_theta``, transformers 5 says
``rope_parameters``: both are read, and both are written.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from moe_model.config import ModelConfig, YarnScaling
from moe_model.rotary import mscale

CONFIG = "config.json"
ARCHITECTURE = "DeepseekV3ForCausalLM"
FP8_BLOCK = (128, 128)


class HuggingFaceError(ValueError):
    """A folder that cannot be imported, or a model that cannot be exported: what, what to do."""


class Published(NamedTuple):
    """What a ``config.json`` says about the tensors beside it."""

    config: ModelConfig
    """The model."""
    interleaved: bool
    """Whether rotary dimensions are pairs (0, 1), (2, 3) …, as here, or halves."""
    fp8_block: tuple[int, int] | None
    """Rows and columns that share a scale, where weights may be FP8."""


_SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "moe_intermediate_size",
    "n_routed_experts", "num_experts_per_tok", "num_attention_heads", "kv_lora_rank",
    "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "max_position_embeddings",
)  # fmt: skip
"""Without these there is no model."""

_RULES: dict[str, int | float | bool] = {
    "first_k_dense_replace": 3, "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5,
    "norm_topk_prob": True, "rms_norm_eps": 1e-6, "initializer_range": 0.02,
    "tie_word_embeddings": False, "num_nextn_predict_layers": 1,
}  # fmt: skip
"""What transformers takes where the file says nothing."""

_ALWAYS = {
    "hidden_act": "silu",
    "attention_bias": False,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
    "partial_rotary_factor": 1.0,
}
"""Fields that are the same in every model of this architecture; absent or null says the same."""


def read_config(path: Path) -> Published:
    """Read ``path``; ``HuggingFaceError`` names the field that is wrong or not supported."""
    try:
        fields = json.loads(path.read_bytes())
    except OSError as error:
        raise HuggingFaceError(
            f"{path} cannot be read ({error.strerror}): name a folder with a published model."
        ) from error
    except (ValueError, RecursionError) as error:
        raise HuggingFaceError(f"{path} is not JSON ({error}): fetch it again.") from error
    if not isinstance(fields, dict):
        raise HuggingFaceError(f"{path} holds no JSON object: fetch it again.")
    try:
        return _published(fields)
    except (ValueError, OverflowError) as error:
        raise HuggingFaceError(f"{path}: {error}") from error


def _published(fields: dict[str, Any]) -> Published:
    architectures, model_type = fields.get("architectures"), fields.get("model_type")
    named = architectures == [ARCHITECTURE] if architectures else model_type == "deepseek_v3"
    if not named:
        raise ValueError(
            f"architectures={architectures}, model_type={model_type!r}: only {ARCHITECTURE} can be "
            "imported."
        )
    theta, scaling = _read_rope(fields)
    plain_query = fields.get("q_lora_rank", 0) is None
    not_shared = fields.get("n_shared_experts", 0) is None
    ahead = fields.get("num_mtp_layers", _RULES["num_nextn_predict_layers"])
    rules = {**_RULES, "num_nextn_predict_layers": ahead, **fields}
    config = ModelConfig(
        **{name: _number(fields, name, int) for name in _SIZES},
        **{name: _number(rules, name, type(default)) for name, default in _RULES.items()},
        q_lora_rank=None if plain_query else _number(fields, "q_lora_rank", int),
        n_shared_experts=0 if not_shared else _number(fields, "n_shared_experts", int),
        rope_theta=theta,
        rope_scaling=scaling,
    )
    heads = config.num_attention_heads
    same = {"num_key_value_heads": heads, "num_mtp_layers": config.num_nextn_predict_layers}
    same |= {"head_dim": config.qk_rope_head_dim, "qk_head_dim": config.qk_head_dim}
    for name, expected in {**_ALWAYS, **same}.items():
        if (found := fields.get(name)) not in (None, expected):
            raise ValueError(f"{name}={found!r} is not supported: only {expected!r} is.")
    interleaved = _number({"rope_interleave": True, **fields}, "rope_interleave", bool)
    return Published(config, interleaved, _read_block(fields))


def _number(fields: dict[str, Any], name: str, kind: type) -> Any:
    value: Any = fields.get(name)
    if kind is float and type(value) is int:
        value = float(value)
    fits = type(value) is kind
    if fits and abs(value) < float("inf"):
        return value
    said = f"{name}={value!r}" if name in fields else f"{name} is missing"
    kinds = {int: "a whole number", float: "a number", bool: "true or false"}
    raise ValueError(f"{said}: it must be {kinds[kind]}.")


def _read_block(fields: dict[str, Any]) -> tuple[int, int] | None:
    """The block that shares a scale, where weights are stored as FP8."""
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


def _read_rope(fields: dict[str, Any]) -> tuple[float, YarnScaling | None]:
    """``rope_theta``, and YaRN where it is in force."""
    rope: dict[str, Any] = {"rope_theta": fields["rope_theta"]} if "rope_theta" in fields else {}
    for source in ("rope_scaling", "rope_parameters"):
        told = fields.get(source)
        if not isinstance(told, dict | None):
            raise ValueError(f"{source}={told!r} is neither an object nor null.")
        for name, value in (told or {}).items():
            name = "rope_type" if name == "type" else name
            if rope.setdefault(name, value) != value:
                raise ValueError(
                    f"{source}.{name}={value!r} contradicts {name}={rope[name]!r} elsewhere in the "
                    "file: remove the wrong one."
                )
    theta: float = _number({"rope_theta": 10_000.0, **rope}, "rope_theta", float)
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return theta, None
    if kind != "yarn":
        raise ValueError(f"rope_type={kind!r} is not supported: only yarn and default are.")
    for name, only in (("truncate", True), ("partial_rotary_factor", 1.0)):
        if rope.get(name, only) != only:
            raise ValueError(f"rope {name}={rope[name]!r} is not supported: only {only} is.")
    known = {name: value for name, value in rope.items() if value is not None}
    numbers = ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor")
    yarn = {name: _number(known, name, float) for name in numbers if name in known}
    if not yarn.get("factor", 0) >= 1:
        raise ValueError(f"rope factor={rope.get('factor')!r} is not a number of 1 or more.")
    original = "original_max_position_embeddings"
    positions = {original: fields.get("max_position_embeddings"), **known, **fields}
    mscale, mscale_all_dim = _strengths(yarn)
    return theta, YarnScaling(
        factor=yarn["factor"],
        original_max_position_embeddings=_number(positions, original, int),
        beta_fast=yarn.get("beta_fast") or 32.0,
        beta_slow=yarn.get("beta_slow") or 1.0,
        mscale=mscale,
        mscale_all_dim=mscale_all_dim,
    )


def _strengths(yarn: dict[str, float]) -> tuple[float, float]:
    """``mscale`` and ``mscale_all_dim`` that give here what the file gives in transformers.

    There the amplitude of the rotated parts is m(mscale) / m(mscale_all_dim) only where both are
    given and not 0, otherwise m(1), and ``attention_factor`` overrules both; the correction of the
    softmax is m(mscale_all_dim)² in any case. Here the amplitude is always the quotient, so where
    the file's own ``mscale`` does not give the amplitude, another does.
    """
    factor, all_dim = yarn["factor"], yarn.get("mscale_all_dim", 0.0)
    amplitude = yarn.get("attention_factor", default_amplitude(yarn))
    for strength in (yarn.get("mscale", 1.0), 1.0):
        if mscale(factor, strength) / mscale(factor, all_dim) == amplitude:
            return strength, all_dim
    needed = amplitude * mscale(factor, all_dim) - 1
    if factor == 1 or needed < 0:
        raise ValueError(
            f"rope attention_factor={amplitude} with factor={factor} and mscale_all_dim={all_dim} "
            "is not supported: no mscale of 0 or more gives it."
        )
    return needed / (0.1 * math.log(factor)), all_dim


def default_amplitude(yarn: dict[str, Any]) -> float:
    """What transformers scales the rotated parts with where no ``attention_factor`` is given."""
    over, under = yarn.get("mscale"), yarn.get("mscale_all_dim")
    if over and under:
        return mscale(yarn["factor"], over) / mscale(yarn["factor"], under)
    return mscale(yarn["factor"], 1.0)


def published_fields(config: ModelConfig) -> dict[str, Any]:
    """The ``config.json`` of ``config``, without what the tokenizer and the weights add to it.

    Raises:
        HuggingFaceError: If transformers' class cannot be this model.
    """
    alone = config.n_routed_experts // config.n_group < 2
    for impossible, said in (
        (config.scoring_func != "sigmoid", f"scoring_func={config.scoring_func!r}: it has sigmoid"),
        (alone, f"n_routed_experts={config.n_routed_experts}: it has at least two a group"),
    ):
        if impossible:
            raise HuggingFaceError(
                f"{said}; {ARCHITECTURE} of transformers cannot be this model, so it cannot be "
                "exported."
            )
    names = (*_SIZES, *_RULES, "q_lora_rank", "n_shared_experts", "rope_theta")
    plain = {name: getattr(config, name) for name in names}
    rope: dict[str, Any] = {"rope_type": "default"}
    if (scaling := config.rope_scaling) is not None:
        # Transformers 4 warns where one of these is a whole number.
        rope = {name: float(value) for name, value in dataclasses.asdict(scaling).items()}
        rope |= {"rope_type": "yarn", "type": "yarn"}
        rope["original_max_position_embeddings"] = scaling.original_max_position_embeddings
        factor = scaling.factor
        amplitude = mscale(factor, scaling.mscale) / mscale(factor, scaling.mscale_all_dim)
        if amplitude != default_amplitude(rope):
            rope["attention_factor"] = amplitude
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "deepseek_v3",
        **{name: value for name, value in _ALWAYS.items() if name != "partial_rotary_factor"},
        **plain,
        "num_key_value_heads": config.num_attention_heads,
        "rope_interleave": True,
        "rope_scaling": rope if config.rope_scaling is not None else None,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
        "use_cache": True,
    }
