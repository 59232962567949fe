"""The auxiliary losses: 1 at perfect balance, blind to padding and to the size of the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moe_model import Routing, balance_loss, sequence_balance_loss

E, K = 8, 2


def routing_of(logits_TE: Tensor, ids_TK: Tensor | None = None) -> Routing:
    scores_TE = logits_TE.sigmoid()
    ids_TK = scores_TE.topk(K).indices if ids_TK is None else ids_TK
    weights_TK = scores_TE.gather(-1, ids_TK)
    kept_TK = torch.ones_like(ids_TK, dtype=torch.bool)
    return Routing(logits_TE, scores_TE, ids_TK, weights_TK, torch.zeros(len(logits_TE)), kept_TK)


def all_valid(batch: int, length: int) -> Tensor:
    return torch.ones(batch, length, dtype=torch.bool)


def balanced_logits(sequences: int) -> Tensor:
    """Token t prefers experts t and t + 1 modulo E: every expert is chosen equally often."""
    rows = torch.eye(E) + torch.eye(E).roll(1, dims=1)
    return (4 * rows - 2).repeat(sequences, 1)


@pytest.mark.parametrize("loss", [sequence_balance_loss, balance_loss])
def test_perfect_balance_reads_one(loss) -> None:
    value_L = loss([routing_of(balanced_logits(3))], all_valid(3, E))
    torch.testing.assert_close(value_L, torch.ones(1))


@pytest.mark.parametrize("loss", [sequence_balance_loss, balance_loss])
def test_collapse_on_k_experts_reads_up_to_e_over_k(loss) -> None:
    logits_TE = torch.full((2 * E, E), -30.0)
    logits_TE[:, :K] = 5.0
    value_L = loss([routing_of(logits_TE)], all_valid(2, E))
    torch.testing.assert_close(value_L, torch.full((1,), E / K))


def test_each_router_has_its_own_value() -> None:
    """Pooled over routers, two that collapse on different experts would look balanced."""
    collapsed = [torch.full((E, E), -30.0) for _ in range(2)]
    collapsed[0][:, :4] = 5.0
    collapsed[1][:, 4:] = 5.0
    values_L = balance_loss([routing_of(logits) for logits in collapsed], all_valid(1, E))
    assert (values_L > 1.5).all()


def test_sequence_loss_counts_the_unbiased_choice() -> None:
    """Where the bias sends tokens does not matter: f is of the scores alone."""
    logits_TE = torch.randn(2 * E, E, generator=torch.Generator().manual_seed(0))
    elsewhere = torch.zeros(2 * E, K, dtype=torch.int64)
    natural, moved = routing_of(logits_TE), routing_of(logits_TE, elsewhere)
    valid = all_valid(2, E)
    assert torch.equal(
        sequence_balance_loss([natural], valid), sequence_balance_loss([moved], valid)
    )
    assert not torch.equal(balance_loss([natural], valid), balance_loss([moved], valid))


def test_sequence_loss_does_not_depend_on_how_sequences_are_batched() -> None:
    logits_TE = torch.randn(4 * E, E, generator=torch.Generator().manual_seed(0))
    whole = sequence_balance_loss([routing_of(logits_TE)], all_valid(4, E))
    parts = [
        sequence_balance_loss([routing_of(part)], all_valid(1, E)) for part in logits_TE.split(E)
    ]
    torch.testing.assert_close(whole, torch.stack(parts).mean(dim=0))


@pytest.mark.parametrize("loss", [sequence_balance_loss, balance_loss])
def test_padding_changes_nothing(loss) -> None:
    logits_TE = torch.randn(2 * E, E, generator=torch.Generator().manual_seed(0))
    expected = loss([routing_of(logits_TE)], all_valid(2, E))
    padded = torch.cat((logits_TE.unflatten(0, (2, E)), torch.full((2, 5, E), 3.0)), dim=1)
    valid_BS = torch.cat((all_valid(2, E), torch.zeros(2, 5, dtype=torch.bool)), dim=1)
    actual = loss([routing_of(padded.flatten(0, 1))], valid_BS)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("loss", [sequence_balance_loss, balance_loss])
def test_gradient_lowers_the_score_of_the_favoured_experts(loss) -> None:
    logits_TE = torch.zeros(E, E)
    logits_TE[:, :K] = 1.0
    logits_TE.requires_grad_()
    loss([routing_of(logits_TE)], all_valid(1, E)).sum().backward()
    assert (logits_TE.grad[:, :K] > 0).all()
    assert (logits_TE.grad[:, K:] < 0).all()


def test_scores_near_zero_do_not_lower_the_loss() -> None:
    """An epsilon in the normalisation would let the router hide behind tiny scores."""
    logits_TE = torch.full((E, E), -60.0)
    logits_TE[:, :K] = -55.0
    value = sequence_balance_loss([routing_of(logits_TE)], all_valid(1, E))
    assert value.item() > 3.5
