"""Sampling: reproducible, within the nucleus, and text survives the tokenizer."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moe_model import (
    REPLACEMENT,
    WEIGHTS,
    CharTokenizer,
    LanguageModel,
    SamplingRules,
    app,
    pieces,
    run_command,
    write_description,
    write_tensors,
)
from moe_model.sampling import Sampler, generate


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


def test_a_full_context_goes_on_from_its_second_half(
    make_model: Callable[..., LanguageModel],
) -> None:
    model = make_model()
    prompt = torch.arange(60) % 97
    text = [*prompt.tolist(), *generate(model, prompt, max_new_tokens=12, temperature=0)]
    # Tokens 61 to 64 fill the context and give the 65th; then 32 remain.
    expected = generate(model, torch.tensor(text[65 - 32 : 65]), max_new_tokens=7, temperature=0)
    assert text[65:] == expected


@pytest.mark.parametrize("temperature", [0, 1.0], ids=["greedy", "sampled"])
def test_every_token_is_that_of_reading_everything_again(
    temperature: float, make_model: Callable[..., LanguageModel], ids_BS: Tensor
) -> None:
    model = make_model().eval()
    ids = ids_BS[0].tolist()
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        with torch.no_grad():
            logits_V = model(torch.tensor([ids])).logits_BSV[0, -1]
        ids.append(SamplingRules(temperature).pick(logits_V, ids, generator))
    options = {"max_new_tokens": 20, "temperature": temperature, "seed": 3}
    assert ids[24:] == generate(model, ids_BS[0], **options)


@pytest.mark.parametrize("temperature", [0, 1.0], ids=["greedy", "sampled"])
@pytest.mark.parametrize("seed", range(6))
def test_drafting_gives_exactly_the_same_text(
    seed: int, temperature: float, make_model: Callable[..., LanguageModel]
) -> None:
    """Beyond the end of the context too."""
    model = make_model(seed, num_nextn_predict_layers=1)
    prompt = torch.arange(seed, seed + 9)
    options = {"max_new_tokens": 90, "temperature": temperature, "seed": seed}
    assert generate(model, prompt, draft=True, **options) == generate(model, prompt, **options)


def test_right_drafts_save_passes(make_model: Callable[..., LanguageModel]) -> None:
    """A model whose head says one token whatever it sees: every guess is right."""
    model = make_model(num_nextn_predict_layers=1)
    with torch.no_grad():
        model.norm.weight.zero_()[0] = 1
        model.mtp[0].norm.weight.zero_()[0] = 1
        model.lm_head.weight[:, 0] = 0
    sampler = Sampler(model, torch.tensor([1, 2, 3]), max_new_tokens=41, temperature=0, draft=True)
    assert len(list(sampler)) == 41
    assert sampler.passes == 21


@pytest.mark.parametrize("draft", [False, True])
def test_the_token_that_ends_a_text_ends_it(
    draft: bool, make_model: Callable[..., LanguageModel]
) -> None:
    model = make_model(num_nextn_predict_layers=1).train()
    options = {"max_new_tokens": 40, "seed": 1, "draft": draft}
    text = generate(model, torch.tensor([1, 2]), **options)
    end = text[25]
    before = text[: text.index(end)]
    assert generate(model, torch.tensor([1, 2]), stop_at=(97, end), **options) == before
    assert model.training


@pytest.mark.parametrize("draft", [False, True])
def test_a_text_that_was_left_is_gone_on_with(
    draft: bool, make_model: Callable[..., LanguageModel]
) -> None:
    model = make_model(num_nextn_predict_layers=1)
    options = {"max_new_tokens": 20, "temperature": 0, "draft": draft}
    whole = generate(model, torch.tensor([1, 2]), **options)
    sampler = Sampler(model, torch.tensor([1, 2]), **options)
    first = [token for token, _ in zip(sampler, range(5), strict=False)]
    assert whole[: len(first)] == first
    rest = list(sampler)
    assert whole[-len(rest) :] == rest


def test_generating_with_a_diverged_model_is_a_clear_error(
    make_model: Callable[..., LanguageModel],
) -> None:
    model = make_model()
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="the model has diverged"):
        generate(model, torch.tensor([1]), max_new_tokens=1)


def test_a_tiny_temperature_takes_the_likeliest() -> None:
    generator = torch.Generator().manual_seed(0)
    rules = SamplingRules(1e-40, top_p=1.0)
    assert rules.pick(torch.tensor([90.0, 91.0, 89.0]), [], generator) == 1


def test_a_model_without_multi_token_prediction_cannot_draft(
    make_model: Callable[..., LanguageModel],
) -> None:
    with pytest.raises(ValueError, match="Train it with --mtp"):
        Sampler(make_model(), torch.tensor([1]), max_new_tokens=1, draft=True)


@given(st.text(max_size=40), st.integers(1, 4))
def test_text_in_pieces_is_the_text(text: str, size: int) -> None:
    """Tokens of ``size`` bytes: most of them are not whole characters."""
    data = text.encode("utf-8", "ignore")
    tokens = [data[i : i + size] for i in range(0, len(data), size)]
    whole = b"".join(tokens).decode()
    assert "".join(pieces(range(len(tokens)), Bytes(tokens))) == whole


class Bytes:
    """A tokenizer of which only decoding is asked."""

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens

    def decode(self, ids: list[int]) -> str:
        return b"".join(self.tokens[i] for i in ids).decode(errors="replace")


def test_empty_prompt_is_refused(make_model: Callable[..., LanguageModel]) -> None:
    with pytest.raises(ValueError, match="it needs at least one"):
        generate(make_model(), torch.empty(0, dtype=torch.int64), max_new_tokens=1)


def test_only_the_nucleus_is_sampled() -> None:
    logits_V = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)
    rules = SamplingRules(1.0, top_p=0.75)
    drawn = {rules.pick(logits_V, [], generator) for _ in range(200)}
    assert drawn == {0, 1}
    rules = SamplingRules(1.0, top_p=1e-6)
    assert {rules.pick(logits_V, [], generator) for _ in range(20)} == {0}


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_text_survives_encoding(text: str) -> None:
    tokenizer = CharTokenizer.from_dict(CharTokenizer("".join(sorted(set(text)))).to_dict())
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == text


def test_unknown_characters_are_named() -> None:
    with pytest.raises(ValueError, match="'!é' do not occur"):
        CharTokenizer("abc").encode("abé!")


def test_ids_of_a_padded_head_do_not_crash_decoding() -> None:
    assert CharTokenizer("ab").decode([0, 1, 7]) == "ab\N{REPLACEMENT CHARACTER}"


class Output(io.StringIO):
    """Standard output, on a terminal or in a pipe."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize("is_terminal", [True, False], ids=["terminal", "pipe"])
def test_what_a_model_writes_steers_no_terminal_and_is_data_in_a_pipe(
    is_terminal: bool,
    make_model: Callable[..., LanguageModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model that takes nothing but escape, after a prompt with every kind of control."""
    model, tokenizer = make_model(), CharTokenizer("\x1b\n\t\r\x9b\u202e\xa0é]")
    with torch.no_grad():
        model.norm.weight.zero_()[0] = 1
        model.lm_head.weight[:, 0] = 0
    write_tensors(tmp_path / WEIGHTS, model.state_dict())
    write_description(tmp_path, model.config, 3, tokenizer=tokenizer.to_dict())
    output = Output(is_terminal)
    monkeypatch.setattr(sys, "stdout", output)
    prompt = "\xa0é\n\t\x1b]\r\x9b\u202e"
    flags = ["--prompt", prompt, "--max-new-tokens=3", "--temperature=0"]
    assert run_command(app, [str(tmp_path), *flags]) == 0
    shown = (
        f"\xa0é\n\t{REPLACEMENT}]{REPLACEMENT * 6}\n" if is_terminal else f"{prompt}\x1b\x1b\x1b\n"
    )
    assert output.getvalue() == shown
