"""Sampling: reproducible, within the nucleus, and text survives the tokenizer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moe_model.generate import generate, pick
from moe_model.model import LanguageModel
from moe_model.tokenizer import CharTokenizer


def test_same_seed_same_text_and_the_global_generator_is_left_alone(
    make_model: Callable[..., LanguageModel], ids_BS: Tensor
) -> None:
    model = make_model()
    before = torch.get_rng_state()
    first = generate(model, ids_BS[0], max_new_tokens=8, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert generate(model, ids_BS[0], max_new_tokens=8, seed=3) == first
    assert generate(model, ids_BS[0], max_new_tokens=8, seed=4) != first
    assert len(first) == 8


def test_temperature_zero_takes_the_likeliest(
    make_model: Callable[..., LanguageModel], ids_BS: Tensor
) -> None:
    model = make_model().eval()
    ids = generate(model, ids_BS[0], max_new_tokens=1, temperature=0)
    with torch.no_grad():
        assert ids == [int(model(ids_BS[:1]).logits_BSV[0, -1].argmax())]


def test_context_longer_than_the_model_is_cut_on_the_left(
    make_model: Callable[..., LanguageModel],
) -> None:
    model = make_model()
    long = torch.arange(90) % 97
    whole = generate(model, long, max_new_tokens=3)
    assert whole == generate(model, long[-64:], max_new_tokens=3)


def test_empty_prompt_is_refused(make_model: Callable[..., LanguageModel]) -> None:
    with pytest.raises(ValueError, match="give at least one"):
        generate(make_model(), torch.empty(0, dtype=torch.int64), max_new_tokens=1)


def test_only_the_nucleus_is_sampled() -> None:
    logits_V = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)
    drawn = {pick(logits_V, 1.0, 0.75, generator) for _ in range(200)}
    assert drawn == {0, 1}
    assert {pick(logits_V, 1.0, 1e-6, generator) for _ in range(20)} == {0}


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_text_survives_encoding(text: str) -> None:
    tokenizer = CharTokenizer.from_dict(CharTokenizer.from_text(text).to_dict())
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == text


def test_unknown_characters_are_named() -> None:
    with pytest.raises(ValueError, match="'!é' do not occur"):
        CharTokenizer.from_text("abc").encode("abé!")


def test_ids_of_a_padded_head_do_not_crash_decoding() -> None:
    assert CharTokenizer("ab").decode([0, 1, 7]) == "ab\N{REPLACEMENT CHARACTER}"
