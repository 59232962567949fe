"""What must hold for every router and every token, for any logits and biases."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load, save
from torch import Tensor

from moe_model import ModelConfig
from moe_model.balance import update_expert_bias
from moe_model.router import Router
from moe_model.training.options import Options
from moe_model.training.step import make_optimizer
from tests.model.conftest import SMALL, make_model

E, K, D = 16, 3, 6


def make_router(**fields: Any) -> Router:
    sizes = {"hidden_size": D, "n_routed_experts": E, "num_experts_per_tok": K}
    router = Router(ModelConfig(**{**SMALL, **sizes, **fields}))
    with torch.no_grad():
        router.weight.normal_(generator=torch.Generator().manual_seed(0))
    return router


def tokens(seed: int = 1) -> Tensor:
    return torch.randn(40, D, generator=torch.Generator().manual_seed(seed))


def route_one_by_one(scores: list[float], bias: list[float], config: ModelConfig) -> Any:
    """Experts, weights and margin of one token, as the paper describes them."""
    choice = [score + offset for score, offset in zip(scores, bias, strict=True)]
    size = E // config.n_group
    groups = [range(first, first + size) for first in range(0, E, size)]
    groups.sort(key=lambda group: -sum(sorted(choice[e] for e in group)[-2:]))
    allowed = [e for group in groups[: config.topk_group] for e in group]
    order = sorted(allowed, key=lambda e: -choice[e])
    weights = [scores[e] for e in order[:K]]
    total = sum(weights) if config.norm_topk_prob else 1.0
    weights = [weight / total * config.routed_scaling_factor for weight in weights]
    return order[:K], weights, choice[order[K - 1]] - choice[order[K]]


@given(
    seed=st.integers(0, 10_000),
    bias=st.lists(st.floats(-3, 3, width=32), min_size=E, max_size=E),
    scoring_func=st.sampled_from(["sigmoid", "softmax"]),
    groups=st.sampled_from([(1, 1), (4, 2), (8, 3)]),
    scale=st.sampled_from([1.0, 2.5]),
    normalise=st.booleans(),
)
@settings(max_examples=60)
def test_choice_weights_and_margin_are_those_of_the_paper(
    seed: int, bias: list[float], scoring_func: str, groups: Any, scale: float, normalise: bool
) -> None:
    """A bias decides which experts are chosen, and never how much they count."""
    router = make_router(
        scoring_func=scoring_func, n_group=groups[0], topk_group=groups[1],
        routed_scaling_factor=scale, norm_topk_prob=normalise,
    )  # fmt: skip
    router.expert_bias.copy_(torch.tensor(bias))
    routing = router(tokens(seed))
    for token, scores in enumerate(routing.scores_TE.tolist()):
        ids, weights, margin = route_one_by_one(scores, bias, router.config)
        assert routing.margin_T[token].item() == pytest.approx(margin, abs=1e-6)
        if margin > 1e-6:
            found = routing.expert_ids_TK[token].tolist(), routing.weights_TK[token].tolist()
            assert dict(zip(*found, strict=True)) == pytest.approx(
                dict(zip(ids, weights, strict=True)), rel=1e-5
            )


def test_margin_is_infinite_where_nothing_is_left_out() -> None:
    assert make_router(num_experts_per_tok=E)(tokens()).margin_T.isinf().all()


def test_logits_are_fp32_under_autocast() -> None:
    router = make_router()
    expected = router(tokens())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = router(tokens())
    assert torch.equal(routing.logits_TE, expected.logits_TE)
    assert routing.weights_TK.dtype == torch.float32


@pytest.mark.parametrize("scoring_func", ["sigmoid", "softmax"])
@pytest.mark.parametrize(("n_group", "topk_group"), [(1, 1), (4, 1), (8, 2)])
def test_a_collapsed_router_chooses_its_first_k_experts_whatever_it_learns(
    scoring_func: str, n_group: int, topk_group: int
) -> None:
    router = make_router(scoring_func=scoring_func, n_group=n_group, topk_group=topk_group)
    free = router(tokens()).scores_TE
    router.expert_bias.normal_()
    router.collapse()
    assert torch.equal(router(tokens()).scores_TE, free), "entropy cannot see it"
    for scale in (1.0, -100.0):  # scores of exactly 0 and 1 too
        with torch.no_grad():
            router.weight.mul_(scale)
        for mode in (router.train(), router.eval()):
            routing = mode(tokens())
            assert (routing.expert_ids_TK.sort().values == torch.arange(K)).all()
        update_expert_bias([router], torch.tensor([[40] * K + [0] * (E - K)]), 0.5)


@pytest.mark.parametrize("cast", ["bfloat16", "half", "double"])
def test_bias_stays_fp32_when_the_model_is_cast(cast: str) -> None:
    model = make_model()
    model.routers[0].expert_bias.fill_(0.1234567)
    getattr(model, cast)()
    bias = model.routers[0].expert_bias
    assert bias.dtype == torch.float32
    assert bias[0] == torch.tensor(0.1234567)
    assert model.routers[0].weight.dtype != torch.float32


def test_bias_is_saved_with_the_weights_and_never_optimised() -> None:
    model, loaded = make_model(), make_model(seed=1)
    for router in model.routers:
        router.expert_bias.normal_()
    loaded.load_state_dict(load(save(model.state_dict())))
    for ours, theirs in zip(loaded.routers, model.routers, strict=True):
        assert torch.equal(ours.expert_bias, theirs.expert_bias)
    groups = make_optimizer(model, Options(lr=1e-3)).param_groups
    managed = {id(p) for group in groups for p in group["params"]}
    assert managed == {id(p) for p in model.parameters()}
    assert not managed & {id(router.expert_bias) for router in model.routers}


def test_a_bias_that_was_loaded_in_bf16_is_not_updated_in_silence() -> None:
    model = make_model()
    half = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    model.load_state_dict(half, assign=True)
    counts_LE = torch.ones(2, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"expert_bias is torch\.bfloat16"):
        update_expert_bias(model.routers, counts_LE, 0.01)
