"""A dense feed-forward and the experts made of it compute the same, whomever the router chooses.

The oracle is transformers' Llama, with its feed-forwards and with ours in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_model import FeedForward, MixtureOfExperts, ModelConfig
from moe_model.upcycle import WithoutRouting, break_symmetry, expert_width, split_into_experts
from tests.model.llamas import SHAPE, random_llama

MakeConfig = Callable[..., ModelConfig]
CASES = [
    pytest.param(80, {}, id="one shared expert"),
    pytest.param(80, {"n_shared_experts": 0}, id="no shared expert"),
    pytest.param(80, {"n_shared_experts": 3, "routed_scaling_factor": 2.5}, id="three, scaled"),
    pytest.param(83, {"n_group": 4, "topk_group": 2}, id="odd width, groups"),
    pytest.param(5, {"n_shared_experts": 2}, id="fewer neurons than room"),
    pytest.param(80, {"scoring_func": "softmax", "num_experts_per_tok": 8}, id="all experts"),
]


def dense_layer(width: int) -> FeedForward:
    dense = FeedForward(48, width)
    for parameter in dense.parameters():
        parameter.data.normal_(std=0.2, generator=torch.Generator().manual_seed(width))
    return dense


def split(config: ModelConfig, dense: FeedForward, usefulness_F: Tensor) -> MixtureOfExperts:
    torch.manual_seed(1)  # of the router
    moe = MixtureOfExperts(config)
    moe.router.weight.data.normal_()
    weights = dense.gate_proj.weight, dense.up_proj.weight, dense.down_proj.weight
    split_into_experts(moe, *weights, usefulness_F)
    return moe


@pytest.fixture(name="make_case")
def _make_case(make_config: MakeConfig) -> Callable[..., tuple[FeedForward, MixtureOfExperts]]:
    def make(width: int, **fields: Any) -> tuple[FeedForward, MixtureOfExperts]:
        shared = fields.get("n_shared_experts", 1)
        fields = {"hidden_size": 48, "moe_intermediate_size": expert_width(width, shared), **fields}
        dense = dense_layer(width)
        usefulness_F = torch.rand(width, generator=torch.Generator().manual_seed(2))
        return dense, split(make_config(**fields), dense, usefulness_F)

    return make


@pytest.mark.parametrize(("width", "fields"), CASES)
@torch.no_grad()
def test_experts_compute_what_the_dense_feed_forward_did(
    make_case: Callable[..., Any], width: int, fields: dict[str, Any]
) -> None:
    dense, moe = make_case(width, **fields)
    x_BSD = torch.randn(2, 30, 48, generator=torch.Generator().manual_seed(3))
    expected = dense(x_BSD)
    assert expected.std() > 0.05, "outputs too small to tell anything"
    torch.testing.assert_close(moe(x_BSD)[0], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_every_choice_of_experts_gives_the_same_output(make_case: Callable[..., Any]) -> None:
    dense, moe = make_case(80)
    x_BSD = torch.randn(1, 20, 48, generator=torch.Generator().manual_seed(3))
    seen = set()
    for first in range(8):
        for second in range(first):
            moe.router.expert_bias.zero_()
            moe.router.expert_bias[[first, second]] = 10
            y_BSD, routing = moe(x_BSD)
            seen.add(tuple(sorted(routing.expert_ids_TK[0].tolist())))
            torch.testing.assert_close(y_BSD, dense(x_BSD), atol=1e-5, rtol=0)
    assert len(seen) == 28


@torch.no_grad()
def test_logits_of_a_llama_are_the_same_with_experts_in_every_layer(
    make_config: MakeConfig,
) -> None:
    llama = random_llama()
    ids_BS = torch.randint(97, (2, 40), generator=torch.Generator().manual_seed(4))
    expected = llama(ids_BS).logits
    config = make_config(hidden_size=48, moe_intermediate_size=40, routed_scaling_factor=2.5)
    for layer in llama.model.layers:
        layer.mlp = WithoutRouting(split(config, layer.mlp, torch.rand(SHAPE["intermediate_size"])))
    assert expected.abs().mean() > 0.3, "logits too small to tell anything"
    torch.testing.assert_close(llama(ids_BS).logits, expected, atol=1e-4, rtol=0)


def test_the_most_useful_neurons_are_shared(make_config: MakeConfig) -> None:
    dense, usefulness_F = dense_layer(80), torch.zeros(80)
    useful = torch.randperm(80, generator=torch.Generator().manual_seed(5))[:40]
    usefulness_F[useful] = 1
    moe = split(make_config(hidden_size=48, moe_intermediate_size=40), dense, usefulness_F)
    shared = {tuple(row) for row in moe.shared_experts.gate_proj.weight.tolist()}
    assert shared == {tuple(row) for row in dense.gate_proj.weight[useful].tolist()}


def test_noise_has_the_stated_size_and_leaves_the_shared_expert_alone(
    make_case: Callable[..., Any],
) -> None:
    _, moe = make_case(80)
    before = {name: tensor.clone() for name, tensor in moe.state_dict().items()}
    break_symmetry(moe, 0.05, torch.Generator().manual_seed(6))
    after = moe.state_dict()
    width = moe.router.config.moe_intermediate_size
    for name, rows in (
        ("experts.gate_up_proj", slice(0, width)),
        ("experts.gate_up_proj", slice(width, None)),
        ("experts.down_proj", slice(None)),
    ):
        noise = after[name][:, rows] - before[name][:, rows]
        assert noise.std() / before[name][:, rows].std() == pytest.approx(0.05, rel=0.03)
        assert not torch.equal(after[name][0], after[name][1])
    for name in before.keys() - {"experts.gate_up_proj", "experts.down_proj"}:
        assert torch.equal(before[name], after[name]), name


def test_no_noise_changes_nothing(make_case: Callable[..., Any]) -> None:
    _, moe = make_case(80)
    before = moe.experts.down_proj.clone()
    break_symmetry(moe, 0.0, torch.Generator())
    assert torch.equal(moe.experts.down_proj, before)
