"""A dense feed-forward and the experts made of it compute the same for every choice of experts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from moe_model import MixtureOfExperts
from moe_model.experts import FeedForward
from moe_model.upcycle.conversion import break_symmetry, expert_width, split_into_experts
from tests.model.conftest import make_config

MakeCase = Callable[..., tuple[FeedForward, MixtureOfExperts]]


@pytest.fixture
def make_case() -> MakeCase:
    """A dense layer and its experts; the neurons differ in usefulness."""

    def make(width: int, **fields: Any) -> tuple[FeedForward, MixtureOfExperts]:
        shared = fields.get("n_shared_experts", 1)
        sizes = {"hidden_size": 48, "moe_intermediate_size": expert_width(width, shared)}
        moe, dense = MixtureOfExperts(make_config(**sizes, **fields)), FeedForward(48, width)
        generator = torch.Generator().manual_seed(width)
        for parameter in dense.parameters():
            parameter.data.normal_(std=0.2, generator=generator)
        moe.router.weight.data.normal_(generator=generator)
        weights = dense.gate_proj.weight, dense.up_proj.weight, dense.down_proj.weight
        usefulness_F = torch.randperm(width, generator=torch.Generator().manual_seed(2)).float()
        split_into_experts(moe, *weights, usefulness_F)
        return dense, moe

    return make


@pytest.mark.parametrize(
    ("width", "fields"),
    [
        pytest.param(80, {}, id="one shared expert"),
        pytest.param(80, {"n_shared_experts": 0}, id="no shared expert"),
        pytest.param(80, {"n_shared_experts": 3, "routed_scaling_factor": 2.5}, id="three, scaled"),
        pytest.param(83, {"n_group": 4, "topk_group": 2}, id="odd width, groups"),
        pytest.param(5, {"n_shared_experts": 2}, id="fewer neurons than room"),
        pytest.param(80, {"scoring_func": "softmax", "num_experts_per_tok": 8}, id="all experts"),
    ],
)
@torch.no_grad()
def test_experts_compute_what_the_dense_one_did(make_case: Any, width: int, fields: Any) -> None:
    dense, moe = make_case(width, **fields)
    x_BSD = torch.randn(2, 30, 48, generator=torch.Generator().manual_seed(3))
    expected = dense(x_BSD)
    assert expected.std() > 0.05, "outputs too small to prove anything"
    seen = set()
    for bias in (0.0, *torch.eye(8) * 10):
        moe.router.expert_bias.copy_(torch.as_tensor(bias))
        y_BSD, routing = moe(x_BSD)
        torch.testing.assert_close(y_BSD, expected, atol=1e-5, rtol=0)
        seen |= {tuple(sorted(ids)) for ids in routing.expert_ids_TK.tolist()}
    assert len(seen) > 10 or "num_experts_per_tok" in fields, "different experts were chosen"


def test_the_most_useful_neurons_are_shared(make_case: MakeCase) -> None:
    dense, moe = make_case(80)
    rank = torch.randperm(80, generator=torch.Generator().manual_seed(2))
    shared = {tuple(row) for row in moe.shared_experts.gate_proj.weight.tolist()}
    assert shared == {tuple(row) for row in dense.gate_proj.weight[rank >= 40].tolist()}


@pytest.mark.parametrize("size", [0.05, 0.0])
def test_noise_has_its_size_and_spares_the_shared_expert(size: float, make_case: MakeCase) -> None:
    _, moe = make_case(80)
    before = {name: tensor.clone() for name, tensor in moe.state_dict().items()}
    break_symmetry(moe, size, torch.Generator().manual_seed(6))
    after = moe.state_dict()
    width = moe.router.config.moe_intermediate_size
    for name, rows in (
        ("experts.gate_up_proj", slice(0, width)),
        ("experts.gate_up_proj", slice(width, None)),
        ("experts.down_proj", slice(None)),
    ):
        noise = after[name][:, rows] - before[name][:, rows]
        assert noise.std() / before[name][:, rows].std() == pytest.approx(size, rel=0.03)
        assert torch.equal(after[name][0], after[name][1]) is (size == 0)
    for name in before.keys() - {"experts.gate_up_proj", "experts.down_proj"}:
        assert torch.equal(before[name], after[name]), name
