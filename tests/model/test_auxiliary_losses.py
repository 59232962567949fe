"""The auxiliary losses equal sums written out, and read 1 at perfect balance."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moe_model import balance_loss, router_z_loss, sequence_balance_loss
from moe_model.router import Routing

E, K = 8, 2
Loss = Callable[[list[Routing], Tensor], Tensor]


def routing_of(logits_TE: Tensor, ids_TK: Tensor | None = None) -> Routing:
    scores_TE = logits_TE.sigmoid()
    ids_TK = scores_TE.topk(K).indices if ids_TK is None else ids_TK
    weights_TK = scores_TE.gather(-1, ids_TK)
    kept_TK = torch.ones_like(ids_TK, dtype=torch.bool)
    return Routing(logits_TE, scores_TE, ids_TK, weights_TK, torch.zeros(len(logits_TE)), kept_TK)


def written_out(loss: Loss, routing: Routing, valid: list[list[bool]]) -> float:
    """As the papers have them, token by token: of real tokens only, none pooled over routers."""
    rows = []
    for logits, ids in zip(routing.logits_TE.double(), routing.expert_ids_TK.tolist(), strict=True):
        scores = logits.sigmoid().tolist()
        if loss is sequence_balance_loss:  # where the bias sends tokens does not matter
            ids = sorted(range(E), key=lambda e: -scores[e])[:K]
        rows.append((ids, [score / sum(scores) for score in scores], logits.logsumexp(0).item()))
    length = len(valid[0])
    sequences = [
        [row for row, real in zip(rows[b * length :], mask, strict=False) if real]
        for b, mask in enumerate(valid)
    ]
    tokens = [row for sequence in sequences for row in sequence]
    if loss is router_z_loss:
        return sum(z**2 for _, _, z in tokens) / len(tokens)
    means = []
    for part in sequences if loss is sequence_balance_loss else [tokens]:
        if part:
            share = [sum(e in ids for ids, _, _ in part) / len(part) for e in range(E)]
            mean = [sum(p[e] for _, p, _ in part) / len(part) for e in range(E)]
            means.append(E / K * sum(f * p for f, p in zip(share, mean, strict=True)))
    return sum(means) / len(means)


@pytest.mark.parametrize("shift", [0.0, -60.0], ids=["usual scores", "scores near zero"])
@pytest.mark.parametrize("loss", [sequence_balance_loss, balance_loss, router_z_loss])
def test_losses_equal_sums_written_out_and_ignore_padding(loss: Loss, shift: float) -> None:
    """An epsilon in the normalisation would let the router hide behind tiny scores."""
    generator = torch.Generator().manual_seed(0)
    routings = [
        routing_of(
            3 * torch.randn(4 * 6, E, generator=generator) + shift,
            torch.rand(4 * 6, E, generator=generator).topk(K).indices,
        )
        for _ in range(2)
    ]
    valid_LBS = torch.ones(2, 4, 6, dtype=torch.bool)
    valid_LBS[0, 1, 4:], valid_LBS[:, 2, :1], valid_LBS[1, 3] = False, False, False
    expected = [
        written_out(loss, routing, valid_BS.tolist())
        for routing, valid_BS in zip(routings, valid_LBS, strict=True)
    ]
    assert loss(routings, valid_LBS).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [sequence_balance_loss, balance_loss])
def test_perfect_balance_reads_one_and_collapse_on_k_experts_e_over_k(loss: Loss) -> None:
    balanced_TE = 4 * (torch.eye(E) + torch.eye(E).roll(1, dims=1)) - 2
    collapsed_TE = torch.full((E, E), -30.0)
    collapsed_TE[:, :K] = 5.0
    routings = [routing_of(balanced_TE), routing_of(collapsed_TE)]
    values_L = loss(routings, torch.ones(1, E, dtype=torch.bool))
    torch.testing.assert_close(values_L, torch.tensor([1.0, E / K]))


def test_given_counts_are_the_shares_of_the_classic_loss() -> None:
    routing = routing_of(torch.randn(12, E))
    real_BS = torch.ones(3, 4, dtype=torch.bool)
    own_E = torch.zeros(E, dtype=torch.int64).index_add_(
        0, routing.expert_ids_TK.flatten(), torch.ones(12 * K, dtype=torch.int64)
    )
    own_L, even_L = (balance_loss([routing], real_BS, counts[None]) for counts in (own_E, own_E**0))
    torch.testing.assert_close(own_L, balance_loss([routing], real_BS))
    torch.testing.assert_close(even_L, torch.ones(1))


@pytest.mark.parametrize("loss", [sequence_balance_loss, balance_loss])
def test_gradient_lowers_the_score_of_the_favoured_experts(loss: Loss) -> None:
    logits_TE = torch.zeros(E, E)
    logits_TE[:, :K] = 1.0
    logits_TE.requires_grad_()
    loss([routing_of(logits_TE)], torch.ones(1, E, dtype=torch.bool)).sum().backward()
    assert (logits_TE.grad[:, :K] > 0).all()
    assert (logits_TE.grad[:, K:] < 0).all()
