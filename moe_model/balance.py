"""Load balancing: the bias update and the auxiliary losses.

Loss-less balancing (Wang et al., 2024; DeepSeek-V3, section 2.1.2): once per optimizer step, from
the counts of the whole batch, experts with too many tokens become a little less likely to be
chosen, the others a little more likely. No gradient conflicts with that of the language-model loss.

Losses work on the :class:`~moe_model.router.Routing` that a forward pass returns: what activation
checkpointing computes again is not counted again.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_model.router import Router, Routing

FREEZE_SHARE = 0.5 / 14.8
"""DeepSeek-V3 stops updating the bias for the last 0.5 of its 14.8 trillion tokens."""


def bias_rate_at(step: int, steps: int, rate: float) -> float:
    """The rate for :func:`update_expert_bias` in ``step``, which counts from 1.

    It is ``rate``, then zero for the last part of ``steps``, see :data:`FREEZE_SHARE`.
    """
    return 0.0 if step > steps * (1 - FREEZE_SHARE) else rate


@torch.no_grad()
def update_expert_bias(routers: Sequence[Router], counts_LE: Tensor, rate: float | Tensor) -> None:
    """``b += rate · sign(mean count − count)``, in place, for every router that is not held.

    Args:
        routers: In the order of the rows of ``counts_LE``.
        counts_LE: Tokens per expert of the whole optimizer step, integers: an expert exactly at the
            mean must get no change, and fp32 has not every integer above 16.7 million.
        rate: Added to or taken from a bias, in units of the score.

    Raises:
        ValueError: If a bias is not fp32.
    """
    dtypes = {router.expert_bias.dtype for router in routers} - {torch.float32}
    if dtypes:
        raise ValueError(
            f"expert_bias is {dtypes.pop()}, in which small steps are lost: load weights without "
            "assign=True, which keeps it fp32."
        )
    # count · E compared with the sum: the mean itself may not be an integer.
    total_L1 = counts_LE.sum(dim=-1, keepdim=True)
    change_LE = (total_L1 - counts_LE * counts_LE.shape[-1]).sign().to(torch.float32) * rate
    for router, change_E, counts_E in zip(routers, change_LE, counts_LE, strict=True):
        router.counts_E.copy_(counts_E)
        if not router.held:
            router.expert_bias.add_(change_E)


def sequence_balance_loss(routings: Sequence[Routing], sequences: int) -> Tensor:
    """Complementary sequence-wise loss per router, before its weight (DeepSeek-V3, eq. 17-20).

    ``sum_e f_e · P_e`` in each sequence, averaged over sequences: f is E/K times the share of
    tokens whose *unbiased* top k contains the expert, P the mean normalised score. Perfect balance
    gives 1. No epsilon in the normalisation: with one, a router lowers the loss by pushing all its
    scores to zero.

    Args:
        routings: One per router, over the same tokens.
        sequences: Sequences in the batch, all of one length.

    Returns:
        ``(L,)``, differentiable through P.
    """
    K, E = routings[0].expert_ids_TK.shape[-1], routings[0].scores_TE.shape[-1]
    scores = [r.scores_TE.view(sequences, -1, E) for r in routings]
    shares = [_share(one_BSE, one_BSE.topk(K).indices) for one_BSE in scores]
    losses_LB = torch.stack([*map(_share_times_probability, shares, scores)])
    return losses_LB.mean(dim=-1) * E / K


def balance_loss(routings: Sequence[Routing], counts_LE: Tensor | None = None) -> Tensor:
    """Classic auxiliary loss per router, before its weight (Switch, GShard): ``E/K · sum f · P``.

    As :func:`sequence_balance_loss`, over all tokens at once and with f from the experts that were
    chosen. Pooled over routers it can be minimal while each has collapsed.

    Args:
        routings: One per router, over the same tokens.
        counts_LE: Tokens per expert of each router, from which f is computed instead; ``None`` to
            count those of ``routings``.

    Returns:
        ``(L,)``, differentiable through P.
    """
    K, E = routings[0].expert_ids_TK.shape[-1], routings[0].scores_TE.shape[-1]
    if counts_LE is None:
        shares = [_share(r.scores_TE, r.expert_ids_TK) for r in routings]
    else:
        shares = [*(K * counts_LE / counts_LE.sum(dim=-1, keepdim=True).clamp(min=1))]
    scores = [r.scores_TE for r in routings]
    return torch.stack([*map(_share_times_probability, shares, scores)]) * E / K


def router_z_loss(routings: Sequence[Routing]) -> Tensor:
    """Mean over tokens of ``logsumexp(logits)²`` per router, before its weight (ST-MoE, eq. 5).

    It keeps router logits small: large ones round coarsely and saturate the scores.
    """
    return torch.stack([r.logits_TE.logsumexp(dim=-1).square().mean() for r in routings])


def _share(scores_XTE: Tensor, ids_XTK: Tensor) -> Tensor:
    """Of the tokens that chose each expert: ``(X, E)``."""
    return torch.zeros_like(scores_XTE).scatter(-1, ids_XTK, 1.0).mean(dim=-2)


def _share_times_probability(share_XE: Tensor, scores_XTE: Tensor) -> Tensor:
    """``sum_e share · mean_t probability``: ``(X,)``."""
    probability_XTE = scores_XTE / scores_XTE.sum(dim=-1, keepdim=True)
    return (share_XE * probability_XTE.mean(dim=-2)).sum(dim=-1)
