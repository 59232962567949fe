"""Read and write rotary positions in a published ``config.json``.

Transformers 4 and the hub use ``rope_scaling`` and ``rope_theta``, transformers 5 uses
``rope_parameters``. Both are read, and both are written.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from moe_model import ModelConfig, mscale
from moe_model.config import Llama3Scaling, YarnScaling

_ORIGINAL = "original_max_position_embeddings"


def read_rope(fields: dict[str, Any]) -> tuple[float, YarnScaling | Llama3Scaling | None]:
    """``rope_theta`` and the context extension; ``ValueError`` names the invalid field."""
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
    return theta, _read_yarn(known) if kind == "yarn" else _read_llama3(known)


def _read_llama3(rope: dict[str, Any]) -> Llama3Scaling:
    if rope.get("mscale_all_dim"):
        raise ValueError(
            f"rope mscale_all_dim={rope['mscale_all_dim']!r} is not supported with "
            "rope_type='llama3': it belongs to yarn."
        )
    names = ("factor", "low_freq_factor", "high_freq_factor")
    factors = {name: number(rope, name, float) for name in names}
    return Llama3Scaling(**factors, original_max_position_embeddings=rope[_ORIGINAL])


def _read_yarn(known: dict[str, Any]) -> YarnScaling:
    numbers = ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor")
    yarn = {name: number(known, name, float) for name in numbers if name in known}
    if not yarn.get("factor", 0) >= 1:
        raise ValueError(f"rope factor={known.get('factor')!r} is not a number of 1 or more.")
    mscale, mscale_all_dim = _strengths(yarn)
    return YarnScaling(
        factor=yarn["factor"],
        original_max_position_embeddings=known[_ORIGINAL],
        beta_fast=yarn.get("beta_fast") or 32.0,
        beta_slow=yarn.get("beta_slow") or 1.0,
        mscale=mscale,
        mscale_all_dim=mscale_all_dim,
    )


def _strengths(yarn: dict[str, float]) -> tuple[float, float]:
    """The ``mscale`` and ``mscale_all_dim`` that are equivalent to the file in transformers.

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
    """transformers' scale of the rotated parts if ``attention_factor`` is absent."""
    over, under = yarn.get("mscale"), yarn.get("mscale_all_dim")
    if over and under:
        return mscale(yarn["factor"], over) / mscale(yarn["factor"], under)
    return mscale(yarn["factor"], 1.0)


def rope_fields(config: ModelConfig) -> dict[str, Any]:
    """The rotary fields of ``config`` in a ``config.json``."""
    rope: dict[str, Any] = {"rope_type": "default"}
    if (scaling := config.rope_scaling) is not None:
        # Transformers 4 warns if one of these is an integer.
        rope = {name: float(value) for name, value in dataclasses.asdict(scaling).items()}
        kind = "yarn" if isinstance(scaling, YarnScaling) else "llama3"
        rope |= {"rope_type": kind, "type": kind, _ORIGINAL: int(rope[_ORIGINAL])}
    if isinstance(scaling, YarnScaling):
        factor = scaling.factor
        amplitude = mscale(factor, scaling.mscale) / mscale(factor, scaling.mscale_all_dim)
        if amplitude != default_amplitude(rope):
            rope["attention_factor"] = amplitude
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": rope if scaling is not None else None,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
    }


def number(fields: dict[str, Any], name: str, kind: type) -> Any:
    """Field ``name`` if it has type ``kind``, else ``ValueError``."""
    value: Any = fields.get(name)
    if kind is float and type(value) is int:
        value = float(value)
    fits = type(value) is kind
    if fits and abs(value) < float("inf"):
        return value
    said = f"{name}={value!r}" if name in fields else f"{name} is missing"
    kinds = {int: "a whole number", float: "a number", bool: "true or false"}
    raise ValueError(f"{said}: it must be {kinds[kind]}.")
