"""Rotary tables and the scale of the softmax are those of transformers for every file."""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import assume, example, given, settings, strategies as st
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3RotaryEmbedding,
)

from moe_model import ModelConfig, UsageError
from moe_model.attention import rotary_table, softmax_scale
from moe_model.config import Llama3Scaling, YarnScaling
from moe_model.huggingface.config import published_fields, read_config
from tests.model.published import SHAPE

POSITIONS = 40


def read(fields: dict[str, Any]) -> ModelConfig:
    """The config of a ``config.json`` with ``fields`` beside the usual ones."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps({"model_type": "deepseek_v3", **SHAPE, **fields}))
        return read_config(path).config


def assert_same_rotation(ours: ModelConfig, fields: dict[str, Any]) -> None:
    heads = {"num_key_value_heads": SHAPE["num_attention_heads"]}
    theirs = DeepseekV3Config(**{**SHAPE, **heads, **fields})
    table = DeepseekV3RotaryEmbedding(theirs)(torch.zeros(1), torch.arange(POSITIONS)[None])
    pairs = SHAPE["qk_rope_head_dim"] // 2
    for mine, yours in zip(rotary_table(ours, torch.arange(POSITIONS)), table, strict=True):
        torch.testing.assert_close(mine, yours[0, :, :pairs], atol=1e-5, rtol=1e-5)
    scale = DeepseekV3Attention(theirs, 0).scaling
    assert math.isclose(softmax_scale(ours), scale, rel_tol=1e-12)


strength = st.sampled_from([0.0, 0.5, 0.707, 1.0, 2.0])
yarn = st.fixed_dictionaries(
    {"factor": st.sampled_from([1.0, 4.0, 40])},
    optional={
        "original_max_position_embeddings": st.sampled_from([8, 16, 4096]),
        "beta_fast": st.sampled_from([16.0, 32]),
        "beta_slow": st.sampled_from([0.5, 1]),
        "mscale": st.none() | strength,
        "mscale_all_dim": strength,
        "attention_factor": st.none() | st.sampled_from([0.9, 1.0, 1.3]),
    },
)


@given(yarn, st.sampled_from([10_000.0, 500.0]), st.booleans(), st.sampled_from([None, None, 12]))
@example({"factor": 4.0, "original_max_position_embeddings": 4096}, 500.0, True, None)
@example({"factor": 4.0, "original_max_position_embeddings": 2**20}, 500.0, True, None)
@example({"factor": 40.0}, 10_000.0, False, None)
@settings(max_examples=60)
def test_yarn_as_in_transformers_4_and_5(
    yarn: dict[str, Any], theta: float, modern: bool, beside: int | None
) -> None:
    """The original length may be given beside the other rotary fields too."""
    if modern:
        fields = {"rope_parameters": {"rope_type": "yarn", "rope_theta": theta, **yarn}}
    else:
        fields = {"rope_scaling": {"type": "yarn", **yarn}, "rope_theta": theta}
    if beside:
        fields["original_max_position_embeddings"] = beside
    try:
        ours = read(fields)
    except UsageError:
        # Refused is right only where the amplitude is not the quotient of both strengths.
        both_or_none = bool(yarn.get("mscale")) == bool(yarn.get("mscale_all_dim"))
        assume(yarn.get("attention_factor") is None and both_or_none)
        raise
    assert_same_rotation(ours, json.loads(json.dumps(fields)))


llama3 = st.fixed_dictionaries(
    {
        "factor": st.floats(1, 64),
        "low_freq_factor": st.floats(0.5, 2),
        "high_freq_factor": st.sampled_from([2.5, 4, 16.0]),
        "original_max_position_embeddings": st.sampled_from([8, 30, 8192]),
    }
)


@given(llama3, st.sampled_from([10_000.0, 500.0]), st.booleans())
@settings(max_examples=30)
def test_llama3_as_in_transformers_4_and_5(rope: dict[str, Any], theta: float, new: bool) -> None:
    if new:
        fields = {"rope_parameters": {"rope_type": "llama3", "rope_theta": theta, **rope}}
    else:
        fields = {"rope_scaling": {"rope_type": "llama3", **rope}, "rope_theta": theta}
    assert_same_rotation(read(fields), json.loads(json.dumps(fields)))


@given(
    st.builds(
        YarnScaling,
        factor=st.floats(1, 64),
        original_max_position_embeddings=st.integers(4, 64) | st.just(4096),
        mscale=st.floats(0.1, 2),
        mscale_all_dim=st.floats(0.1, 2),
    )
    | llama3.map(lambda fields: Llama3Scaling(**fields))
    | st.none(),
    st.sampled_from([10_000.0, 500.0]),
)
@settings(max_examples=50)
def test_exported_positions_turn_the_same_way_there(scaling: Any, theta: float) -> None:
    ours = ModelConfig(**{**SHAPE, "rope_scaling": scaling, "rope_theta": theta})
    fields = json.loads(json.dumps(published_fields(ours)))
    for other in ("rope_scaling", "rope_parameters"):
        alone = {name: fields[name] for name in ("rope_theta", other)}
        assert_same_rotation(ours, alone)
    back = read(fields)
    if scaling is not None and scaling.factor > 1:
        assert back == ours
