"""Every token of a training step is counted once, and nothing else is.

Evaluation, sampling, padding and activation checkpointing have each spoiled these counts somewhere.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moe_model import LanguageModel, RouterReport, bias_rate_at, update_expert_bias
from moe_model.sampling import generate

MakeModel = Callable[..., LanguageModel]


def train_step(model: LanguageModel, *micro_batches: Tensor) -> RouterReport:
    """Forward and backward over ``micro_batches``; what the routers read."""
    model.train().zero_grad()
    model.readings.reset()
    for ids_BS in micro_batches:
        logits = model(ids_BS).logits_BSV
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids_BS[:, 1:].flatten())
        (loss / len(micro_batches)).backward()
    return model.readings.report(model.routers)


def test_every_row_of_counts_sums_to_tokens_times_k(make_model: MakeModel, ids_BS: Tensor) -> None:
    report = train_step(make_model(), ids_BS)
    assert report.tokens == ids_BS.numel()
    assert [sum(row) for row in report.tokens_per_expert] == [ids_BS.numel() * 2] * 2
    assert all(type(n) is int for row in report.tokens_per_expert for n in row)


def test_counts_are_those_of_the_chosen_experts(make_model: MakeModel, ids_BS: Tensor) -> None:
    model = make_model()
    report = train_step(model, ids_BS)
    routings = model(ids_BS).routings
    expected = [r.expert_ids_TK.flatten().bincount(minlength=8).tolist() for r in routings]
    assert report.tokens_per_expert == expected


@pytest.mark.parametrize("how", ["eval", "no_grad", "generate"])
def test_evaluation_and_sampling_are_not_counted(
    how: str, make_model: MakeModel, ids_BS: Tensor
) -> None:
    model = make_model()
    expected = train_step(model, ids_BS)
    if how == "eval":
        model.eval()(ids_BS)
    elif how == "no_grad":
        with torch.no_grad():
            model(ids_BS)
    else:
        generate(model, ids_BS[0, :5], max_new_tokens=3)
        assert model.training
    assert model.readings.report(model.routers).tokens_per_expert == expected.tokens_per_expert


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_activation_checkpointing_counts_once_and_changes_nothing(
    use_reentrant: bool, make_model: MakeModel, ids_BS: Tensor
) -> None:
    plain, recomputed = make_model(), make_model()
    for layer in recomputed.layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=use_reentrant)
    expected, report = train_step(plain, ids_BS), train_step(recomputed, ids_BS)
    assert report.tokens_per_expert == expected.tokens_per_expert
    assert report.tokens == expected.tokens
    for ours, theirs in zip(recomputed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_four_batches_of_one_are_one_batch_of_four(make_model: MakeModel, ids_BS: Tensor) -> None:
    whole, parts = make_model(), make_model()
    for _ in range(3):
        one, four = train_step(whole, ids_BS), train_step(parts, *ids_BS.split(1))
        assert one.tokens_per_expert == four.tokens_per_expert
        for model in (whole, parts):
            update_expert_bias(model.routers, model.readings.counts_LE, 1e-2)
    for one_router, four_router in zip(whole.routers, parts.routers, strict=True):
        assert torch.equal(one_router.expert_bias, four_router.expert_bias)
        assert one_router.expert_bias.any()


def test_padding_is_left_out_of_everything(make_model: MakeModel, ids_BS: Tensor) -> None:
    """Padding on the right cannot change what comes before it, so both must read the same."""
    model = make_model().train()
    model(ids_BS)
    expected = model.readings.report(model.routers)
    padded_BS = F.pad(ids_BS, (0, 9), value=3)
    valid_BS = torch.ones_like(ids_BS, dtype=torch.bool)
    model.readings.reset()
    model(padded_BS, F.pad(valid_BS, (0, 9), value=False))
    report = model.readings.report(model.routers)
    assert report.tokens == expected.tokens
    assert report.tokens_per_expert == expected.tokens_per_expert
    for name, values in expected.router.items():
        assert report.router[name] == pytest.approx(values, rel=1e-4), name


def test_readings_are_what_their_definitions_say(make_model: MakeModel, ids_BS: Tensor) -> None:
    model = make_model()
    report = train_step(model, *ids_BS.split(1))
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
        read = {name: values[layer] for name, values in report.router.items()}
        assert read == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("padded", [False, True])
def test_readings_are_the_same_however_many_routers_are_looked_at_together(
    padded: bool, make_model: MakeModel, ids_BS: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large models are read router by router, so that no stack of all their logits is made."""
    model = make_model(num_nextn_predict_layers=1).train()
    valid_BS = torch.ones_like(ids_BS, dtype=torch.bool)
    valid_BS[0, -5:] = False
    reports = []
    for most in (2**24, 1):
        monkeypatch.setattr("moe_model.readings._MOST_AT_ONCE", most)
        model.readings.reset()
        model(ids_BS, valid_BS if padded else None, next_ids=ids_BS.roll(-1, 1))
        reports.append(model.readings.report(model.routers))
    assert reports[0].tokens_per_expert == reports[1].tokens_per_expert
    assert reports[0].router.keys() == reports[1].router.keys()
    for name, row in reports[0].router.items():
        assert row == pytest.approx(reports[1].router[name], rel=1e-6), name


def test_readings_are_not_rounded_by_autocast(make_model: MakeModel, ids_BS: Tensor) -> None:
    model = make_model().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routings = model(ids_BS).routings
    entropy = model.readings.report(model.routers).router["entropy"]
    for value, routing in zip(entropy, routings, strict=True):
        probability = routing.scores_TE / routing.scores_TE.sum(dim=-1, keepdim=True)
        exact = torch.special.entr(probability.double()).sum(dim=-1).mean().item()
        assert value == pytest.approx(exact, rel=1e-5)


def test_margin_has_no_value_where_the_groups_leave_no_next_expert(
    make_model: MakeModel, ids_BS: Tensor
) -> None:
    model = make_model(n_group=4, topk_group=1)
    assert train_step(model, ids_BS).router["margin"] == [None, None]


def test_report_before_any_training_pass_is_refused(make_model: MakeModel) -> None:
    model = make_model()
    with pytest.raises(RuntimeError, match="run the model in training mode"):
        model.readings.report(model.routers)


def test_scalars_come_along_in_order(make_model: MakeModel, ids_BS: Tensor) -> None:
    model = make_model().train()
    model(ids_BS)
    report = model.readings.report(model.routers, [torch.tensor(1.5), torch.tensor(math.inf)])
    assert report.scalars == [1.5, math.inf]


def test_bias_moves_by_the_rate_against_the_load_and_not_at_the_mean(make_model: MakeModel) -> None:
    routers = make_model().routers
    counts_LE = torch.tensor([[9, 1, 5, 5, 5, 5, 5, 5], [40, 0, 0, 0, 0, 0, 0, 0]])
    update_expert_bias(routers, counts_LE, 0.01)
    assert routers[0].expert_bias.tolist() == pytest.approx([-0.01, 0.01, 0, 0, 0, 0, 0, 0])
    assert routers[1].expert_bias.tolist() == pytest.approx([-0.01] + [0.01] * 7)


def test_counts_beyond_fp32_still_decide_the_sign(make_model: MakeModel) -> None:
    routers = make_model().routers[:1]
    fair = 2**40
    update_expert_bias(routers, torch.tensor([[fair + 1, fair - 1] + [fair] * 6]), 0.01)
    assert routers[0].expert_bias.tolist() == pytest.approx([-0.01, 0.01, 0, 0, 0, 0, 0, 0])


def test_counts_for_other_routers_are_refused(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="2 routers got counts for 1"):
        update_expert_bias(make_model().routers, torch.ones(1, 8, dtype=torch.int64), 0.01)


def test_bias_rate_is_constant_and_then_zero() -> None:
    rates = [bias_rate_at(step, 1000, 0.01) for step in range(1, 1001)]
    assert rates == [0.01] * 966 + [0.0] * 34
