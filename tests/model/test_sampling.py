"""Which tokens may follow is what transformers says, and several prompts are as each alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from benchmarks.transformers_peer import peer
from moe_model import LanguageModel, SamplingRules, generate_batch
from moe_model.sampling import Sampler, generate

MakeModel = Callable[..., LanguageModel]


@given(
    seed=st.integers(0, 2**32 - 1),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 5, 40, 500]),
    top_p=st.sampled_from([0.2, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    penalty=st.sampled_from([0.7, 1.0, 1.3, 5.0]),
)
@settings(deadline=None)
def test_probabilities_are_those_of_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float, penalty: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_V = torch.randn(97, generator=generator) * 3
    ids = torch.randint(97, (20,), generator=generator)
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty)])
    processors.append(TemperatureLogitsWarper(temperature))
    if top_k:
        processors.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        processors.append(TopPLogitsWarper(top_p))
    processors.append(MinPLogitsWarper(min_p))
    expected_V = processors(ids[None], logits_V[None])[0].softmax(dim=-1)
    rules = SamplingRules(temperature, top_k, top_p, min_p, penalty)
    probability_V, ids_V = rules.probabilities(logits_V, ids.tolist())
    ours_V = torch.zeros(97).scatter(0, ids_V, probability_V / probability_V.sum())
    torch.testing.assert_close(ours_V, expected_V, atol=1e-6, rtol=1e-4)
    assert torch.equal(ours_V > 0, expected_V > 0)


def test_the_rules_are_those_of_generate_in_transformers(
    make_model: MakeModel, ids_BS: Tensor
) -> None:
    """Greedy with a penalty, which the prompt counts for, through their whole loop."""
    model = make_model()
    theirs = (
        peer(model)
        .eval()
        .generate(
            ids_BS[:1],
            max_new_tokens=20,
            do_sample=False,
            repetition_penalty=1.4,
            eos_token_id=None,
        )
    )
    ours = generate(model, ids_BS[0], max_new_tokens=20, temperature=0, repetition_penalty=1.4)
    assert ours == theirs[0, 24:].tolist()
    assert ours != generate(model, ids_BS[0], max_new_tokens=20, temperature=0)


def test_a_draft_is_picked_by_the_same_rules(make_model: MakeModel) -> None:
    model = make_model(num_nextn_predict_layers=1)
    options: dict[str, Any] = {"max_new_tokens": 40, "top_k": 7, "min_p": 0.02}
    options |= {"repetition_penalty": 1.3, "temperature": 1.5}
    prompt = torch.tensor([1, 2, 3])
    assert generate(model, prompt, draft=True, **options) == generate(model, prompt, **options)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"temperature": -1.0}, "temperature -1.0 is out of range: choose 0 or more"),
        ({"temperature": float("nan")}, "temperature nan is out of range"),
        ({"top_k": -1}, "top-k -1 is out of range"),
        ({"top_p": 0.0}, "top-p 0.0 is out of range: choose above 0, up to 1"),
        ({"min_p": 1.5}, "min-p 1.5 is out of range: choose 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition-penalty 0.0 is out of range: choose above 0"),
    ],
)
@pytest.mark.parametrize("sampler", [Sampler, generate_batch])
def test_rules_that_cannot_be_are_refused(
    sampler: Callable[..., object], rules: dict[str, Any], message: str, make_model: MakeModel
) -> None:
    prompt = torch.tensor([1])
    given: Any = prompt if sampler is Sampler else [prompt]
    with pytest.raises(ValueError, match=message):
        sampler(make_model(), given, max_new_tokens=1, **rules)


class Allocated(TorchDispatchMode):
    """Adds up the bytes of all tensors that are made meanwhile, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not func.is_view:
            self.nbytes += result.untyped_storage().nbytes()
        return result


@pytest.mark.parametrize(
    ("how", "options"),
    [
        (generate, {}),
        (generate, {"draft": True}),
        (
            lambda model, prompt, **options: generate_batch(model, [prompt, prompt[2:]], **options),
            {},
        ),
    ],
    ids=["one prompt", "drafting", "several prompts"],
)
def test_what_generating_allocates_does_not_depend_on_the_context(
    how: Callable[..., Any], options: dict[str, Any], make_model: MakeModel
) -> None:
    sizes = []
    for context in (64, 163_840):
        model = make_model(max_position_embeddings=context, num_nextn_predict_layers=1)
        with Allocated() as allocated:
            how(model, torch.arange(9), max_new_tokens=2, temperature=0, **options)
        sizes.append(allocated.nbytes)
    assert sizes[0] == sizes[1]
    assert sizes[0] > 1000, "something was seen at all"


PROMPTS = [
    torch.arange(40, 70), torch.tensor([3]), torch.arange(80) % 97,
    torch.arange(64), torch.tensor([5, 5, 5, 5]), torch.arange(62),
]  # fmt: skip
"""Longer than the context too, exactly as long, and such that it is full soon."""


@pytest.mark.parametrize(
    "rules",
    [
        {"temperature": 0},
        {"temperature": 1.0, "seed": 3},
        {"temperature": 1.5, "repetition_penalty": 1.3, "top_k": 9, "min_p": 0.01, "seed": 5},
    ],
    ids=["greedy", "sampled", "every rule"],
)
def test_several_prompts_give_what_each_gives_alone(
    rules: dict[str, Any], make_model: MakeModel
) -> None:
    """Beyond the end of the context too, which the texts reach one after the other."""
    model = make_model(q_lora_rank=20).train()
    alone = [generate(model, prompt, max_new_tokens=40, **rules) for prompt in PROMPTS]
    assert generate_batch(model, PROMPTS, max_new_tokens=40, **rules) == alone
    assert model.training


def test_each_text_of_a_batch_ends_where_it_ends_alone(make_model: MakeModel) -> None:
    model = make_model()
    options: dict[str, Any] = {"max_new_tokens": 60, "temperature": 1.0, "seed": 1}
    whole = generate_batch(model, PROMPTS, **options)
    places = [{ids.index(token) for ids in whole if token in ids} for token in range(97)]
    stop_at = max(range(97), key=lambda token: len(places[token]))
    alone = [generate(model, prompt, stop_at=[stop_at], **options) for prompt in PROMPTS]
    assert len({len(ids) for ids in alone}) > 2, "they end at different places"
    assert generate_batch(model, PROMPTS, stop_at=[stop_at], **options) == alone


def test_a_batch_takes_as_many_passes_as_its_longest_text(make_model: MakeModel) -> None:
    model, passes = make_model(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    texts = generate_batch(model, PROMPTS[:2], max_new_tokens=12)
    assert [len(ids) for ids in texts] == [12, 12]
    assert len(passes) == 12


def test_an_empty_prompt_in_a_batch_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="a prompt has 0 tokens"):
        generate_batch(make_model(), [PROMPTS[0], torch.tensor([])], max_new_tokens=1)


def test_a_batch_is_what_generate_of_transformers_makes_of_it(make_model: MakeModel) -> None:
    """Padded on the left with a mask, as is usual there."""
    model = make_model(n_routed_experts=16, num_experts_per_tok=4)
    prompts = [torch.arange(40, 49), torch.tensor([3]), torch.arange(20)]
    padded_BS = torch.zeros(3, 20, dtype=torch.int64)
    mask_BS = torch.zeros(3, 20, dtype=torch.int64)
    for row, prompt_S in enumerate(prompts):
        padded_BS[row, 20 - len(prompt_S) :], mask_BS[row, 20 - len(prompt_S) :] = prompt_S, 1
    theirs = (
        peer(model)
        .eval()
        .generate(
            padded_BS, attention_mask=mask_BS, max_new_tokens=30, do_sample=False, eos_token_id=None
        )
    )
    ours = generate_batch(model, prompts, max_new_tokens=30, temperature=0)
    assert ours == theirs[:, 20:].tolist()


def test_every_rule_has_its_default_that_changes_nothing_but_the_nucleus() -> None:
    neutral = SamplingRules(temperature=1.0, top_p=1.0)
    logits_V = torch.randn(97, generator=torch.Generator().manual_seed(0))
    probability_V, ids_V = neutral.probabilities(logits_V, [1, 2, 3])
    torch.testing.assert_close(probability_V, logits_V.softmax(dim=-1)[ids_V])
    assert {field.name for field in dataclasses.fields(SamplingRules)} == {
        "temperature", "top_k", "top_p", "min_p", "repetition_penalty",
    }  # fmt: skip
