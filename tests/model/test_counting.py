"""Every token of a training step is counted once, and nothing else is.

Activation checkpointing and autocast have each spoiled these counts somewhere.
"""

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from microscope_tui.probe import RoutingCounter
from moe_model import LanguageModel
from moe_model.balance import bias_rate_at, update_expert_bias
from tests.counted import counted, counter_of
from tests.model.conftest import make_model


def train_step(model: LanguageModel, *batches: Tensor) -> tuple[RoutingCounter, dict[str, Any]]:
    """Forward and backward over ``batches``; what was counted, and its line."""
    model.train().zero_grad()
    routings = []
    for ids_BS in batches:
        output = model(ids_BS, next_ids=ids_BS.roll(-1, 1) if len(model.mtp) else None)
        logits = (output.logits_BSV, *output.ahead_logits)
        losses = [F.cross_entropy(l_BSV.flatten(0, 1), ids_BS.flatten()) for l_BSV in logits]
        (sum(losses) / len(batches)).backward()
        routings.append(output.routings)
    return counter_of(model, *routings), counted(model, *routings)


def test_counts_are_those_of_the_chosen_experts(ids_BS: Tensor) -> None:
    model = make_model()
    counter, line = train_step(model, ids_BS)
    routings = model(ids_BS).routings
    expected = [r.expert_ids_TK.flatten().bincount(minlength=8).tolist() for r in routings]
    assert line["tokens"] == ids_BS.numel()
    assert line["tokens_per_expert"] == counter.counts.tolist() == expected
    assert [sum(row) for row in expected] == [ids_BS.numel() * 2] * 2
    assert all(type(n) is int for row in line["tokens_per_expert"] for n in row)


@pytest.mark.parametrize("how", ["reentrant", "not reentrant", "recompute"])
def test_activation_checkpointing_counts_once_and_changes_nothing(how: str, ids_BS: Tensor) -> None:
    plain, recomputed = (make_model(num_nextn_predict_layers=1) for _ in range(2))
    if how == "recompute":
        recomputed.recompute = True
    else:
        for layer in (*recomputed.layers, *recomputed.mtp):
            run = functools.partial(checkpoint, layer.forward, use_reentrant=how == "reentrant")
            layer.forward = run
    (_, expected), (_, line) = train_step(plain, ids_BS), train_step(recomputed, ids_BS)
    assert line["tokens_per_expert"] == expected["tokens_per_expert"]
    assert [sum(row) for row in line["tokens_per_expert"]] == [ids_BS.numel() * 2] * 3
    assert line["tokens"] == expected["tokens"]
    for ours, theirs in zip(recomputed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_four_batches_of_one_are_one_batch_of_four(ids_BS: Tensor) -> None:
    whole, parts = (make_model(num_nextn_predict_layers=1) for _ in range(2))
    for _ in range(3):
        (one, _), (four, _) = train_step(whole, ids_BS), train_step(parts, *ids_BS.split(1))
        assert torch.equal(one.counts, four.counts)
        for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)
        for model, counter in ((whole, one), (parts, four)):
            update_expert_bias(model.routers, counter.counts, 1e-2)
    for one_router, four_router in zip(whole.routers, parts.routers, strict=True):
        assert torch.equal(one_router.expert_bias, four_router.expert_bias)
        assert one_router.expert_bias.any()


def test_summaries_are_what_their_definitions_say(ids_BS: Tensor) -> None:
    model = make_model()
    _, line = train_step(model, *ids_BS.split(1))
    for layer, routing in enumerate(model(ids_BS).routings):
        scores = routing.scores_TE.detach().double()
        probability = scores / scores.sum(dim=-1, keepdim=True)
        mean = probability.mean(dim=0)
        expected = {
            "entropy": -(probability * probability.log()).sum(dim=-1).mean().item(),
            "mean_entropy": -(mean * mean.log()).sum().item(),
            "z_loss": routing.logits_TE.double().logsumexp(dim=-1).square().mean().item(),
            "max_logit": routing.logits_TE.abs().max().item(),
            "selected_mass": probability.gather(-1, routing.expert_ids_TK).sum(-1).mean().item(),
            "margin": routing.margin_T.double().mean().item(),
            "grad_norm": model.routers[layer].weight.grad.norm().item(),
        }
        read = {name: values[layer] for name, values in line["router"].items()}
        assert read == pytest.approx(expected, rel=1e-4)


def test_summaries_are_the_same_however_many_routers_are_counted_together(
    ids_BS: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large models are counted router by router, so that no stack of all their logits is made."""
    model = make_model(num_nextn_predict_layers=1).train()
    routings = model(ids_BS, next_ids=ids_BS.roll(-1, 1)).routings
    together = counted(model, routings)
    monkeypatch.setattr("microscope_tui.probe.counter.WAITING_BYTES", 0)
    alone = counted(model, routings)
    assert together["tokens_per_expert"] == alone["tokens_per_expert"]
    for name, row in together["router"].items():
        assert row == pytest.approx(alone["router"][name], rel=1e-6), name


def test_summaries_are_not_rounded_by_autocast(ids_BS: Tensor) -> None:
    model = make_model().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routings = model(ids_BS).routings
        entropy = counted(model, routings)["router"]["entropy"]
    for value, routing in zip(entropy, routings, strict=True):
        probability = routing.scores_TE / routing.scores_TE.sum(dim=-1, keepdim=True)
        exact = torch.special.entr(probability.double()).sum(dim=-1).mean().item()
        assert value == pytest.approx(exact, rel=1e-5)


def test_margin_has_no_value_where_the_groups_leave_no_next_expert(ids_BS: Tensor) -> None:
    _, line = train_step(make_model(n_group=4, topk_group=1), ids_BS)
    assert "margin" not in line["router"]


def test_bias_moves_by_the_rate_against_the_load_and_not_at_the_mean() -> None:
    """For counts beyond the integers of fp32 too."""
    fair = 2**40
    for counts in ([9, 1, *[5] * 6], [fair + 1, fair - 1, *[fair] * 6]):
        routers = make_model().routers
        update_expert_bias(routers, torch.tensor([counts, [40, 0, 0, 0, 0, 0, 0, 0]]), 0.01)
        assert routers[0].expert_bias.tolist() == pytest.approx([-0.01, 0.01, *[0] * 6])
        assert routers[1].expert_bias.tolist() == pytest.approx([-0.01] + [0.01] * 7)
    with pytest.raises(ValueError, match="shorter"):
        update_expert_bias(routers, torch.ones(1, 8, dtype=torch.int64), 0.01)


def test_bias_rate_is_constant_and_then_zero() -> None:
    rates = [bias_rate_at(step, 1000, 0.01) for step in range(1, 1001)]
    assert rates == [0.01] * 966 + [0.0] * 34
