"""Capacity: which pairs are dropped, how many exactly, and none without a capacity."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from moe_model import LanguageModel, ModelConfig
from moe_model.config import DropPolicy
from moe_model.router import Router
from tests.counted import counted
from tests.model.conftest import SMALL, make_model

E, K = 8, 2


def kept_one_by_one(
    ids: list[list[int]], weights: list[list[float]], capacity: int, policy: str
) -> list[list[bool]]:
    pairs = [(t, k) for t in range(len(ids)) for k in range(K)]
    if policy == "weight":
        pairs.sort(key=lambda pair: -weights[pair[0]][pair[1]])
    room = [capacity] * E
    kept = [[False] * K for _ in ids]
    for t, k in pairs:
        if room[ids[t][k]]:
            room[ids[t][k]] -= 1
            kept[t][k] = True
    return kept


@pytest.mark.parametrize("policy", ["position", "weight"])
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, E - 1), min_size=K, max_size=K, unique=True),
            st.lists(st.sampled_from([0.1, 0.2, 0.5, 0.9]), min_size=K, max_size=K),
        ),
        min_size=1,
        max_size=24,
    ),
    st.sampled_from([0.25, 0.5, 1.0, 1.25, 2.0, 100.0]),
)
@settings(max_examples=50)
def test_capacity_keeps_the_first_or_the_heaviest_pairs(
    policy: DropPolicy, tokens: list[tuple[list[int], list[float]]], factor: float
) -> None:
    ids, weights = (list(column) for column in zip(*tokens, strict=True))
    capacity = math.ceil(factor * len(ids) * K / E - 1e-9)
    router = Router(ModelConfig(**SMALL, capacity_factor=factor, drop_policy=policy)).train()
    kept_TK = router._within_capacity(torch.tensor(ids), torch.tensor(weights))
    assert kept_TK.tolist() == kept_one_by_one(ids, weights, capacity, policy)


def collapse(model: LanguageModel) -> LanguageModel:
    for router in model.routers:
        router.collapse()
    return model


@pytest.mark.parametrize("policy", ["position", "weight"])
def test_drops_are_counted_exactly_and_stay_in_the_counts(policy: str, ids_BS: Tensor) -> None:
    model = collapse(make_model(capacity_factor=1.5, drop_policy=policy).train())
    line = counted(model, model(ids_BS).routings)
    tokens = ids_BS.numel()
    capacity = math.ceil(1.5 * tokens * K / E)
    assert line["tokens_per_expert"] == [[tokens, tokens] + [0] * 6] * 2
    assert line["router"]["drop_rate"] == [(tokens * K - 2 * capacity) / (tokens * K)] * 2


def test_dropped_pairs_add_nothing_and_kept_ones_keep_their_weight() -> None:
    mlp = make_model(capacity_factor=0.5).layers[1].mlp
    x_TD = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    free, limited = mlp.eval().router(x_TD), mlp.train().router(x_TD)
    assert free.kept_TK.all()
    assert not limited.kept_TK.all()
    assert torch.equal(limited.weights_TK, free.weights_TK * limited.kept_TK)
    y_TD = mlp.experts(x_TD, limited.expert_ids_TK, limited.weights_TK)
    assert not y_TD[~limited.kept_TK.any(dim=1)].any()


def test_no_pair_is_dropped_without_a_capacity_and_no_rate_is_counted(ids_BS: Tensor) -> None:
    model = collapse(make_model().train())
    routings = model(ids_BS).routings
    assert all(routing.kept_TK.all() for routing in routings)
    assert "drop_rate" not in counted(model, routings)["router"]


@pytest.mark.parametrize("policy", ["position", "weight"])
def test_recomputing_drops_the_same_pairs_where_scores_are_rounded_differently(
    ids_BS: Tensor, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """On a GPU a product may round differently the second time; here every product does."""
    kept: list[Tensor] = []
    decide, noise = Router._within_capacity, torch.Generator().manual_seed(0)

    def differently(self: Router, x_TD: Tensor) -> Tensor:
        return x_TD * (1 + 0.05 * torch.empty_like(x_TD).normal_(generator=noise))

    def noted(self: Router, *given: Tensor) -> Tensor:
        kept.append(decide(self, *given))
        return kept[-1]

    monkeypatch.setattr(Router, "_jittered", differently)
    monkeypatch.setattr(Router, "_within_capacity", noted)
    model = make_model(capacity_factor=0.6, drop_policy=policy).train()
    model.recompute = True
    model(ids_BS).logits_BSV.square().mean().backward()
    half = len(kept) // 2
    assert half == len(model.routers) > 1
    for first, second in zip(kept[:half], kept[half:][::-1], strict=True):
        assert not first.all()
        assert torch.equal(first, second)


def test_router_noise_applies_in_training_only_and_repeats_with_its_seed(ids_BS: Tensor) -> None:
    noisy, plain = make_model(router_jitter_noise=0.3), make_model()
    assert torch.equal(noisy.eval()(ids_BS).logits_BSV, plain.eval()(ids_BS).logits_BSV)
    torch.manual_seed(0)
    logits_TE = noisy.train()(ids_BS).routings[0].logits_TE
    expected_TE = plain.train()(ids_BS).routings[0].logits_TE
    assert not torch.allclose(logits_TE, expected_TE, rtol=0.01)
    torch.manual_seed(0)
    assert torch.equal(noisy(ids_BS).routings[0].logits_TE, logits_TE)
