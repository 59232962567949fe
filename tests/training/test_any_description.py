"""Whatever ``checkpoint.json`` says: reading it gives a checkpoint, or a ``CheckpointError``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_model import (
    CharTokenizer,
    CheckpointError,
    LanguageModel,
    ModelConfig,
    read_checkpoint,
    write_description,
    write_tensors,
)
from moe_model.config import YarnScaling


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A checkpoint of the smallest model, and what its ``checkpoint.json`` says."""
    config = ModelConfig(
        vocab_size=4, hidden_size=8, num_hidden_layers=2, first_k_dense_replace=1,
        intermediate_size=8, moe_intermediate_size=4, n_routed_experts=4, n_shared_experts=1,
        num_experts_per_tok=2, num_attention_heads=2, kv_lora_rank=4, qk_nope_head_dim=4,
        qk_rope_head_dim=4, v_head_dim=4, max_position_embeddings=16,
        rope_scaling=YarnScaling(factor=2.0, original_max_position_embeddings=8),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("saved")
    write_tensors(folder / "model.safetensors", LanguageModel(config).state_dict())
    write_description(
        folder, config, 3, tokenizer=CharTokenizer("abcd").to_dict(), validation_loss=1.5
    )
    return folder, (folder / "checkpoint.json").read_text("utf-8")


NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 4, 8, 0.5, 1e300, 2**31 - 1, 2**63, 10**30])
TEXTS = st.text(st.characters(), max_size=3) | st.sampled_from(
    ["..", "sha256", "char", "huggingface", "position"]
)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2)
)


@st.composite
def changes(draw: st.DrawFn) -> Callable[[dict[str, Any]], None]:
    """Something to do to a description: somewhere in it, a value is replaced, removed or added."""
    steps = draw(st.lists(st.integers(0, 40), min_size=1, max_size=3))
    what, value, name = draw(st.sampled_from(["set", "remove", "add"])), draw(VALUES), draw(TEXTS)

    def change(inner: dict[str, Any]) -> None:
        key = name
        for depth, step in enumerate(steps):
            names = sorted(inner)
            key = names[step % len(names)] if names else name
            if depth == len(steps) - 1 or not isinstance(inner.get(key), dict):
                break
            inner = inner[key]
        if what == "remove":
            inner.pop(key, None)
        else:
            inner[key if what == "set" else name] = value

    return change


@given(st.lists(changes(), min_size=1, max_size=3))
@settings(max_examples=300, deadline=None)
def test_whatever_a_description_says_reading_it_gives_a_model_or_says_why_not(
    saved: tuple[Path, str], todo: list[Callable[[dict[str, Any]], None]]
) -> None:
    folder, text = saved
    description = json.loads(text)
    del description["sha256"]
    for change in todo:
        change(description)
    (folder / "checkpoint.json").write_text(json.dumps(description), "utf-8")
    try:
        model = read_checkpoint(folder).load_model()
    except CheckpointError:
        return
    assert model(torch.zeros(1, 4, dtype=torch.int64)).logits_BSV.shape[:2] == (1, 4)


def test_a_whole_number_may_stand_where_another_is_meant(saved: tuple[Path, str]) -> None:
    folder, text = saved
    description = json.loads(text)
    description["model"]["rope_theta"] = 50000
    description["model"]["rope_scaling"]["factor"] = 3
    del description["sha256"]
    (folder / "checkpoint.json").write_text(json.dumps(description), "utf-8")
    config = read_checkpoint(folder).config
    assert config.rope_scaling is not None
    read = (config.rope_theta, config.rope_scaling.factor, config.rope_scaling.beta_fast)
    assert repr(read) == "(50000.0, 3.0, 32.0)"


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(max_examples=300, deadline=None)
def test_one_bit_changes_nothing_that_is_believed(
    saved: tuple[Path, str], place: int, bit: int
) -> None:
    folder, text = saved
    content = bytearray(text.encode())
    content[place % len(content)] ^= 1 << bit
    (folder / "checkpoint.json").write_bytes(content)
    try:
        found = read_checkpoint(folder).description
    except CheckpointError:
        return
    said = json.loads(text)
    assert {name: found[name] for name in said.keys() - {"sha256"}} == {
        name: said[name] for name in said.keys() - {"sha256"}
    }
