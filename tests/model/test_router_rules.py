"""What must hold for every router and every token, whatever the logits and biases are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from moe_model import LanguageModel, ModelConfig, Router, update_expert_bias
from moe_model.training import make_optimizer

D = 6


def make_router(seed: int, **fields: Any) -> Router:
    config = {
        "vocab_size": 9, "hidden_size": D, "num_hidden_layers": 1, "first_k_dense_replace": 0,
        "intermediate_size": 8, "moe_intermediate_size": 8, "n_routed_experts": 16,
        "n_shared_experts": 1, "num_experts_per_tok": 3, "num_attention_heads": 1,
        "kv_lora_rank": 4, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4,
        "max_position_embeddings": 8,
    }  # fmt: skip
    router = Router(ModelConfig(**{**config, **fields}))
    with torch.no_grad():
        router.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return router


def tokens(seed: int) -> torch.Tensor:
    return torch.randn(40, D, generator=torch.Generator().manual_seed(seed + 1))


seeds = st.integers(0, 10_000)
biases = st.lists(st.floats(-3, 3, width=32), min_size=16, max_size=16)
score_functions = st.sampled_from(["sigmoid", "softmax"])


@given(seed=seeds, bias=biases, scoring_func=score_functions)
@settings(max_examples=40, deadline=None)
def test_bias_decides_who_is_chosen_and_never_how_much_they_count(
    seed: int, bias: list[float], scoring_func: str
) -> None:
    router = make_router(seed, scoring_func=scoring_func)
    router.expert_bias.copy_(torch.tensor(bias))
    routing = router(tokens(seed))
    chosen = (routing.scores_TE + router.expert_bias).topk(3).indices
    assert torch.equal(routing.expert_ids_TK.sort().values, chosen.sort().values)
    unbiased = routing.scores_TE.gather(-1, routing.expert_ids_TK)
    expected = unbiased / unbiased.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(routing.weights_TK, expected)


@given(seed=seeds, shift=st.floats(-2, 2, width=32))
@settings(max_examples=20, deadline=None)
def test_a_bias_that_changes_no_choice_changes_nothing(seed: int, shift: float) -> None:
    router = make_router(seed)
    before = router(tokens(seed))
    router.expert_bias.add_(shift)
    after = router(tokens(seed))
    if torch.equal(before.expert_ids_TK, after.expert_ids_TK):
        assert torch.equal(before.weights_TK, after.weights_TK)


@given(seed=seeds, scale=st.sampled_from([1.0, 2.5]), scoring_func=score_functions)
@settings(max_examples=20, deadline=None)
def test_weights_sum_to_the_scaling_factor(seed: int, scale: float, scoring_func: str) -> None:
    router = make_router(seed, routed_scaling_factor=scale, scoring_func=scoring_func)
    total = router(tokens(seed)).weights_TK.sum(dim=-1)
    torch.testing.assert_close(total, torch.full_like(total, scale))


@given(seed=seeds, bias=st.lists(st.floats(-3, -0.5, width=32), min_size=16, max_size=16))
@settings(max_examples=40, deadline=None)
def test_experts_outside_the_best_groups_are_never_chosen_even_with_negative_biases(
    seed: int, bias: list[float]
) -> None:
    router = make_router(seed, n_group=4, topk_group=2)
    router.expert_bias.copy_(torch.tensor(bias))
    routing = router(tokens(seed))
    choice = (routing.scores_TE + router.expert_bias).unflatten(-1, (4, 4))
    best_groups = choice.topk(2).values.sum(dim=-1).topk(2).indices
    for token, ids in enumerate(routing.expert_ids_TK):
        assert set((ids // 4).tolist()) <= set(best_groups[token].tolist())


def test_weights_are_left_alone_without_normalisation() -> None:
    router = make_router(3, norm_topk_prob=False, scoring_func="softmax")
    routing = router(tokens(3))
    expected = routing.scores_TE.gather(-1, routing.expert_ids_TK)
    assert torch.equal(routing.weights_TK, expected)


def test_margin_is_the_gap_between_the_last_chosen_and_the_first_left_out() -> None:
    router = make_router(4)
    router.expert_bias.normal_(generator=torch.Generator().manual_seed(0))
    routing = router(tokens(4))
    ordered = (routing.scores_TE + router.expert_bias).sort(descending=True).values
    torch.testing.assert_close(routing.margin_T, ordered[:, 2] - ordered[:, 3])


def test_margin_is_infinite_where_nothing_is_left_out() -> None:
    assert make_router(5, num_experts_per_tok=16)(tokens(5)).margin_T.isinf().all()


def test_logits_are_fp32_under_autocast() -> None:
    router = make_router(6)
    expected = router(tokens(6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = router(tokens(6))
    assert torch.equal(routing.logits_TE, expected.logits_TE)
    assert routing.weights_TK.dtype == torch.float32


def test_forced_experts_take_every_token_but_only_while_training() -> None:
    router = make_router(7)
    router.forced_experts = (0, 1, 2)
    routing = router.train()(tokens(7))
    assert (routing.expert_ids_TK == torch.tensor([0, 1, 2])).all()
    expected = routing.scores_TE[:, :3] / routing.scores_TE[:, :3].sum(dim=-1, keepdim=True)
    torch.testing.assert_close(routing.weights_TK, expected)
    assert (router.eval()(tokens(7)).expert_ids_TK > 2).any()


@pytest.mark.parametrize("cast", ["bfloat16", "half", "double"])
def test_bias_stays_fp32_when_the_model_is_cast(
    cast: str, make_model: Callable[..., LanguageModel]
) -> None:
    model = make_model()
    model.routers[0].expert_bias.fill_(0.1234567)
    getattr(model, cast)()
    bias = model.routers[0].expert_bias
    assert bias.dtype == torch.float32
    assert bias[0] == torch.tensor(0.1234567)
    assert model.routers[0].weight.dtype != torch.float32


def test_bias_survives_a_round_trip_through_the_state_dict(
    make_model: Callable[..., LanguageModel],
) -> None:
    model = make_model()
    for router in model.routers:
        router.expert_bias.normal_()
    loaded = make_model(seed=1)
    loaded.load_state_dict(load(save(model.state_dict())))
    for ours, theirs in zip(loaded.routers, model.routers, strict=True):
        assert torch.equal(ours.expert_bias, theirs.expert_bias)


def test_a_bias_that_was_loaded_in_bf16_is_not_updated_in_silence(
    make_model: Callable[..., LanguageModel],
) -> None:
    model = make_model()
    half = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    model.load_state_dict(half, assign=True)
    counts_LE = torch.ones(2, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"expert_bias is torch\.bfloat16"):
        update_expert_bias(model.routers, counts_LE, 0.01)


def test_optimizer_never_gets_the_bias(make_model: Callable[..., LanguageModel]) -> None:
    model = make_model()
    optimizer = make_optimizer(model, 1e-3)
    managed = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert managed == {id(p) for p in model.parameters()}
    assert not managed & {id(router.expert_bias) for router in model.routers}
