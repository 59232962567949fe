"""The auxiliary losses equal sums written out, and read 1 at perfect balance."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moe_model.balance import balance_loss, router_z_loss, sequence_balance_loss
from moe_model.router import Routing

E, K = 8, 2
SEQUENCES = 4
Loss = Callable[..., Tensor]


def routing_of(logits_TE: Tensor, ids_TK: Tensor | None = None) -> Routing:
    scores_TE = logits_TE.sigmoid()
    ids_TK = scores_TE.topk(K).indices if ids_TK is None else ids_TK
    weights_TK = scores_TE.gather(-1, ids_TK)
    kept_TK = torch.ones_like(ids_TK, dtype=torch.bool)
    return Routing(logits_TE, scores_TE, ids_TK, weights_TK, torch.zeros(len(logits_TE)), kept_TK)


def of_sequences(loss: Loss, sequences: int) -> list[int]:
    return [sequences] if loss is sequence_balance_loss else []


def written_out(loss: Loss, routing: Routing) -> float:
    """As the papers have them, token by token, not pooled over routers."""
    rows = []
    for logits, ids in zip(routing.logits_TE.double(), routing.expert_ids_TK.tolist(), strict=True):
        scores = logits.sigmoid().tolist()
        if loss is sequence_balance_loss:  # where the bias sends tokens does not matter
            ids = sorted(range(E), key=lambda e: -scores[e])[:K]
        rows.append((ids, [score / sum(scores) for score in scores], logits.logsumexp(0).item()))
    if loss is router_z_loss:
        return sum(z**2 for _, _, z in rows) / len(rows)
    length = len(rows) // SEQUENCES if loss is sequence_balance_loss else len(rows)
    means = []
    for start in range(0, len(rows), length):
        part = rows[start : start + length]
        share = [sum(e in ids for ids, _, _ in part) / length for e in range(E)]
        mean = [sum(p[e] for _, p, _ in part) / length for e in range(E)]
        means.append(E / K * sum(f * p for f, p in zip(share, mean, strict=True)))
    return sum(means) / len(means)


@pytest.mark.parametrize("shift", [0.0, -60.0], ids=["usual scores", "scores near zero"])
@pytest.mark.parametrize("loss", [sequence_balance_loss, balance_loss, router_z_loss])
def test_losses_equal_sums_written_out(loss: Loss, shift: float) -> None:
    """An epsilon in the normalisation would let the router hide behind tiny scores."""
    generator = torch.Generator().manual_seed(0)
    routings = [
        routing_of(
            3 * torch.randn(SEQUENCES * 6, E, generator=generator) + shift,
            torch.rand(SEQUENCES * 6, E, generator=generator).topk(K).indices,
        )
        for _ in range(2)
    ]
    expected = [written_out(loss, routing) for routing in routings]
    found_L = loss(routings, *of_sequences(loss, SEQUENCES))
    assert found_L.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [sequence_balance_loss, balance_loss])
def test_perfect_balance_reads_one_and_collapse_on_k_experts_e_over_k(loss: Loss) -> None:
    balanced_TE = 4 * (torch.eye(E) + torch.eye(E).roll(1, dims=1)) - 2
    collapsed_TE = torch.full((E, E), -30.0)
    collapsed_TE[:, :K] = 5.0
    routings = [routing_of(balanced_TE), routing_of(collapsed_TE)]
    values_L = loss(routings, *of_sequences(loss, 1))
    torch.testing.assert_close(values_L, torch.tensor([1.0, E / K]))


def test_given_counts_are_the_shares_of_the_classic_loss() -> None:
    routing = routing_of(torch.randn(12, E))
    own_E = torch.zeros(E, dtype=torch.int64).index_add_(
        0, routing.expert_ids_TK.flatten(), torch.ones(12 * K, dtype=torch.int64)
    )
    own_L, even_L = (balance_loss([routing], counts[None]) for counts in (own_E, own_E**0))
    torch.testing.assert_close(own_L, balance_loss([routing]))
    torch.testing.assert_close(even_L, torch.ones(1))


@pytest.mark.parametrize("loss", [sequence_balance_loss, balance_loss])
def test_gradient_lowers_the_score_of_the_favoured_experts(loss: Loss) -> None:
    logits_TE = torch.zeros(E, E)
    logits_TE[:, :K] = 1.0
    logits_TE.requires_grad_()
    loss([routing_of(logits_TE)], *of_sequences(loss, 1)).sum().backward()
    assert (logits_TE.grad[:, :K] > 0).all()
    assert (logits_TE.grad[:, K:] < 0).all()
