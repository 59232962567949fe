"""The auxiliary losses equal sums written out, and read 1 at perfect balance."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moe_model import Routing, balance_loss, router_z_loss, sequence_balance_loss

E, K = 8, 2
Loss = Callable[..., Tensor]


def routing_of(logits_TE: Tensor, ids_TK: Tensor | None = None) -> Routing:
    scores_TE = logits_TE.sigmoid()
    ids_TK = scores_TE.topk(K).indices if ids_TK is None else ids_TK
    weights_TK = scores_TE.gather(-1, ids_TK)
    kept_TK = torch.ones_like(ids_TK, dtype=torch.bool)
    return Routing(logits_TE, scores_TE, ids_TK, weights_TK, torch.zeros(len(logits_TE)), kept_TK)


def loss_of(loss: Loss, routings: list[Routing], sequences: int) -> Tensor:
    """Per router; only the sequence-wise loss needs to know where sequences begin."""
    if loss is sequence_balance_loss:
        return loss(routings, sequences)
    return loss(routings)


def written_out(loss: Loss, routing: Routing, length: int) -> float:
    """As the papers have them, token by token: none pooled over routers."""
    rows = []
    for logits, ids in zip(routing.logits_TE.double(), routing.expert_ids_TK.tolist(), strict=True):
        scores = logits.sigmoid().tolist()
        if loss is sequence_balance_loss:  # where the bias sends tokens does not matter
            ids = sorted(range(E), key=lambda e: -scores[e])[:K]
        rows.append((ids, [score / sum(scores) for score in scores], logits.logsumexp(0).item()))
    sequences = [rows[first : first + length] for first in range(0, len(rows), length)]
    if loss is router_z_loss:
        return sum(z**2 for _, _, z in rows) / len(rows)
    means = []
    for part in sequences if loss is sequence_balance_loss else [rows]:
        share = [sum(e in ids for ids, _, _ in part) / len(part) for e in range(E)]
        mean = [sum(p[e] for _, p, _ in part) / len(part) for e in range(E)]
        means.append(E / K * sum(f * p for f, p in zip(share, mean, strict=True)))
    return sum(means) / len(means)


@pytest.mark.parametrize("shift", [0.0, -60.0], ids=["usual scores", "scores near zero"])
@pytest.mark.parametrize("loss", [sequence_balance_loss, balance_loss, router_z_loss])
def test_losses_equal_sums_written_out(loss: Loss, shift: float) -> None:
    """An epsilon in the normalisation would let the router hide behind tiny scores."""
    generator = torch.Generator().manual_seed(0)
    routings = [
        routing_of(
            3 * torch.randn(4 * 6, E, generator=generator) + shift,
            torch.rand(4 * 6, E, generator=generator).topk(K).indices,
        )
        for _ in range(2)
    ]
    expected = [written_out(loss, routing, 6) for routing in routings]
    assert loss_of(loss, routings, 4).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [sequence_balance_loss, balance_loss])
def test_perfect_balance_reads_one_and_collapse_on_k_experts_e_over_k(loss: Loss) -> None:
    balanced_TE = 4 * (torch.eye(E) + torch.eye(E).roll(1, dims=1)) - 2
    collapsed_TE = torch.full((E, E), -30.0)
    collapsed_TE[:, :K] = 5.0
    routings = [routing_of(balanced_TE), routing_of(collapsed_TE)]
    values_L = loss_of(loss, routings, 1)
    torch.testing.assert_close(values_L, torch.tensor([1.0, E / K]))


@pytest.mark.parametrize("loss", [sequence_balance_loss, balance_loss])
def test_gradient_lowers_the_score_of_the_favoured_experts(loss: Loss) -> None:
    logits_TE = torch.zeros(E, E)
    logits_TE[:, :K] = 1.0
    logits_TE.requires_grad_()
    loss_of(loss, [routing_of(logits_TE)], 1).sum().backward()
    assert (logits_TE.grad[:, :K] > 0).all()
    assert (logits_TE.grad[:, K:] < 0).all()
