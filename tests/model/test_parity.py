"""Same weights, same tokens: logits and gradients equal those of transformers' DeepseekV3.

fp32 on one CPU thread. The biases are negative, because masking with zero instead of minus infinity
only shows then; v_head_dim differs from the key's, because a swapped split only shows then; YaRN
reaches beyond its original length, and positions above 1 count, because a softmax over one key
hides every scale.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from benchmarks.transformers_peer import peer, their_name
from moe_model import LanguageModel, LatentCache
from moe_model import attention as attention_module
from moe_model import router as router_module
from moe_model.config import Llama3Scaling, YarnScaling

TOLERANCE = 2e-5
SHAPE = {
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "v_head_dim": 12,
    "routed_scaling_factor": 2.5,
}
"""Four groups are possible, and a swapped split of keys and values shows."""
YARN = YarnScaling(factor=4.0, original_max_position_embeddings=10, mscale=0.7, mscale_all_dim=0.9)
"""Both corrections differ from 1, and from each other."""
LLAMA3 = Llama3Scaling(
    factor=8.0, original_max_position_embeddings=16, low_freq_factor=1.0, high_freq_factor=4.0
)
MakeModel = Callable[..., LanguageModel]


def variants() -> list[Any]:
    """Every combination of query, groups and positions; biases; another stretch."""
    queries = {"plain query": {"q_lora_rank": None}, "low-rank query": {"q_lora_rank": 20}}
    groups = {"one group": {"n_group": 1}, "four groups": {"n_group": 4, "topk_group": 2}}
    positions = {"rotary": {}, "yarn": {"rope_scaling": YARN}}
    return (
        [
            pytest.param({**queries[q], **groups[g], **positions[p]}, id=f"{q}, {g}, {p}")
            for q, g, p in itertools.product(queries, groups, positions)
        ]
        + [
            pytest.param(
                {"attention_bias": True, **queries[q], **positions["yarn"]}, id=f"biases, {q}"
            )
            for q in queries
        ]
        + [pytest.param({"rope_scaling": LLAMA3}, id="positions as in Llama 3")]
    )


@pytest.fixture
def make_biased(make_model: MakeModel) -> MakeModel:
    """A model whose expert biases are about -0.6 ± 0.3."""

    def make(**fields: Any) -> LanguageModel:
        model = make_model(**{**SHAPE, **fields})
        generator = torch.Generator().manual_seed(2)
        for router in model.routers:
            router.expert_bias.normal_(-0.6, 0.3, generator=generator)
        return model

    return make


@torch.no_grad()
def difference(model: LanguageModel, ids_BS: Tensor, **changes: Any) -> float:
    """Largest difference of the logits from those of transformers."""
    expected = peer(model, **changes).eval()(ids_BS, use_cache=False).logits
    assert expected.abs().mean() > 0.3, "logits too small to tell anything"
    return (model.eval()(ids_BS).logits_BSV - expected).abs().max().item()


@pytest.mark.parametrize("fields", variants())
def test_logits_equal(fields: dict[str, Any], make_biased: MakeModel, ids_BS: Tensor) -> None:
    assert difference(make_biased(**fields), ids_BS) <= TOLERANCE


@pytest.mark.parametrize("fields", variants())
def test_gradients_of_every_weight_equal(
    fields: dict[str, Any], make_biased: MakeModel, ids_BS: Tensor
) -> None:
    model = make_biased(**fields).train()
    theirs = peer(model).train()
    targets = ids_BS.roll(-1, dims=1).flatten()
    F.cross_entropy(theirs(ids_BS, use_cache=False).logits.flatten(0, 1), targets).backward()
    F.cross_entropy(model(ids_BS).logits_BSV.flatten(0, 1), targets).backward()
    expected = dict(theirs.named_parameters())
    compared = 0
    for name, parameter in model.named_parameters():
        gradient = expected[their_name(name)].grad
        assert gradient is not None
        assert parameter.grad is not None
        error = (parameter.grad - gradient).norm() / gradient.norm()
        assert error <= 1e-4, name
        compared += 1
    assert compared == len(expected)


@pytest.mark.parametrize(
    "ends",
    [range(1, 25), [3, 5, *range(6, 25)], [5, 24]],
    ids=["token by token", "a prompt, then few tokens absorbed", "much behind a past"],
)
@pytest.mark.parametrize("fields", variants())
@torch.no_grad()
def test_reading_in_parts_equals_theirs_with_their_cache(
    fields: dict[str, Any], ends: Sequence[int], make_biased: MakeModel, ids_BS: Tensor
) -> None:
    model = make_biased(**fields).eval()
    theirs = peer(model).eval()
    past = DynamicCache(config=theirs.config)
    cache = LatentCache(model.config, len(ids_BS), ids_BS.shape[1])
    for start, end in pairwise([0, *ends]):
        expected = theirs(ids_BS[:, start:end], cache=past, use_cache=True).logits
        ours = model(ids_BS[:, start:end], cache=cache).logits_BSV
        torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=0)
    assert cache.used == ids_BS.shape[1]


def test_tied_head_equals_theirs(make_biased: MakeModel, ids_BS: Tensor) -> None:
    model = make_biased(tie_word_embeddings=True)
    assert "lm_head.weight" not in model.state_dict()
    assert model.config.parameters() == sum(p.numel() for p in model.parameters())
    assert difference(model, ids_BS) <= TOLERANCE


def test_norms_inside_attention_use_1e_6_whatever_the_config_says(
    make_biased: MakeModel, ids_BS: Tensor
) -> None:
    assert difference(make_biased(q_lora_rank=20, rms_norm_eps=1e-2), ids_BS) <= TOLERANCE


# Each bug that others published, put back, must be found by the parity above.


def test_rotary_pairs_are_interleaved(make_biased: MakeModel, ids_BS: Tensor) -> None:
    assert difference(make_biased(), ids_BS, rope_interleave=False) > 1e-2


@pytest.mark.parametrize("bug", ["none on the softmax", "mscale on the softmax", "no amplitude"])
def test_both_corrections_of_yarn_are_needed(
    bug: str, make_biased: MakeModel, ids_BS: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_biased(rope_scaling=YARN)
    right = attention_module.mscale(YARN.factor, YARN.mscale_all_dim) ** 2
    wrong = attention_module.mscale(YARN.factor, YARN.mscale) ** 2
    if bug == "no amplitude":
        table = attention_module.rotary_table
        amplitude = attention_module.mscale(YARN.factor, YARN.mscale) / right**0.5

        def without(*arguments: Any) -> tuple[Tensor, Tensor]:
            cos, sin = table(*arguments)
            return cos / amplitude, sin / amplitude

        monkeypatch.setattr("moe_model.model.rotary_table", without)
    else:
        factor = 1 / right if bug == "none on the softmax" else wrong / right
        scale = attention_module.softmax_scale(model.config) * factor
        monkeypatch.setattr("moe_model.attention.softmax_scale", lambda _: scale)
    assert difference(model, ids_BS) > 1e-3


def test_yarn_changes_every_position_but_the_first(make_biased: MakeModel, ids_BS: Tensor) -> None:
    """So a test at position 0 proves nothing."""
    plain, stretched = make_biased().eval(), make_biased(rope_scaling=YARN).eval()
    with torch.no_grad():
        change_S = (plain(ids_BS).logits_BSV - stretched(ids_BS).logits_BSV).abs().amax((0, 2))
    assert change_S[0] < 1e-6
    assert (change_S[1:] > 1e-4).all()


def test_masked_groups_are_minus_infinity_not_zero(
    make_biased: MakeModel, ids_BS: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_biased(n_group=4, topk_group=2)
    masked = router_module.Router._limit_to_groups

    def with_zero(self: router_module.Router, choice_TE: Tensor) -> Tensor:
        return masked(self, choice_TE).nan_to_num(neginf=0.0)

    monkeypatch.setattr(router_module.Router, "_limit_to_groups", with_zero)
    assert difference(model, ids_BS) > 1e-3


def test_a_group_is_judged_by_its_best_two(
    make_biased: MakeModel, ids_BS: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_biased(n_group=4, topk_group=2)

    def by_the_best(self: router_module.Router, choice_TE: Tensor) -> Tensor:
        groups_TGe = choice_TE.view(len(choice_TE), 4, -1)
        best_TG = groups_TGe.amax(-1).topk(2).indices
        kept_TG = torch.zeros(len(choice_TE), 4, dtype=torch.bool).scatter_(1, best_TG, True)
        return groups_TGe.masked_fill(~kept_TG.unsqueeze(-1), float("-inf")).flatten(1)

    monkeypatch.setattr(router_module.Router, "_limit_to_groups", by_the_best)
    assert difference(model, ids_BS) > 1e-3


def test_bias_as_a_weight_is_found(
    make_biased: MakeModel, ids_BS: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_biased()
    forward = router_module.Router.forward

    def biased(self: router_module.Router, x_TD: Tensor, valid_T: Tensor | None = None) -> Any:
        routing = forward(self, x_TD, valid_T)
        weights_TK = (routing.scores_TE + self.expert_bias).gather(1, routing.expert_ids_TK)
        return routing._replace(weights_TK=weights_TK)

    monkeypatch.setattr(router_module.Router, "forward", biased)
    assert difference(model, ids_BS) > 1e-2
