"""Which tokens may follow is what transformers says; impossible rules are refused."""

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, strategies as st
from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

from moe_model.sampling import Sampler, SamplingRules
from tests.model.conftest import make_model


@given(
    seed=st.integers(0, 2**32 - 1),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 5, 40, 96, 500]),
    top_p=st.sampled_from([0.2, 0.9, 1.0]),
)
def test_probabilities_are_those_of_transformers(
    seed: int, temperature: float, top_k: int, top_p: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_V = torch.randn(97, generator=generator) * 3
    processors = LogitsProcessorList([transformers.TemperatureLogitsWarper(temperature)])
    if top_k:
        processors.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        processors.append(TopPLogitsWarper(top_p))
    nothing: Any = None  # these rules do not depend on the text
    expected_V = processors(nothing, logits_V[None])[0].softmax(dim=-1)
    probability_V, ids_V = SamplingRules(temperature, top_k, top_p).probabilities(logits_V)
    ours_V = torch.zeros(97).scatter(0, ids_V, probability_V / probability_V.sum())
    torch.testing.assert_close(ours_V, expected_V, atol=1e-6, rtol=1e-4)
    assert torch.equal(ours_V > 0, expected_V > 0)


def test_a_draw_is_one_of_the_nucleus_and_the_likeliest_at_a_tiny_temperature() -> None:
    logits_V = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()
    generator = torch.Generator().manual_seed(0)
    for rules, nucleus in (
        (SamplingRules(1.0, top_p=0.75), {1, 3}),
        (SamplingRules(1.0, top_p=1e-6), {1}),
        (SamplingRules(1e-40, top_p=1.0), {1}),
    ):
        assert {rules.pick(logits_V, generator) for _ in range(50)} == nucleus


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"temperature": -1.0}, "temperature -1.0 is out of range: choose 0, or 1e-6 to"),
        ({"temperature": 1e-7}, "temperature 1e-07 is out of range"),
        ({"temperature": float("nan")}, "temperature nan is out of range"),
        ({"top_k": -1}, "top-k -1 is out of range"),
        ({"top_p": 0.0}, "top-p 0.0 is out of range: choose 1e-6 to 1"),
    ],
)
def test_impossible_rules_are_refused(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(make_model(), torch.tensor([1]), max_new_tokens=1, **rules)
