"""Keeping the experts busy: the bias update, the auxiliary losses, and what the routers read.

Loss-less balancing (Wang et al., 2024; DeepSeek-V3, section 2.1.2): once per optimizer step, from
the counts of the whole batch, experts that got too much are made a little less likely to be chosen,
the others a little more. No gradient is involved, so nothing pulls against the language-model loss.

Everything here works on the :class:`~moe_model.router.Routing` that a forward pass returns, outside
the layers. A layer that is computed again for activation checkpointing is therefore not counted
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_model.router import Router, Routing

FREEZE_SHARE = 0.5 / 14.8
"""DeepSeek-V3 stops updating the bias for the last 0.5 of its 14.8 trillion tokens."""


def bias_rate_at(step: int, steps: int, rate: float) -> float:
    """Bias update rate of 1-based ``step``: ``rate``, then zero for the last part of ``steps``."""
    return 0.0 if step > steps * (1 - FREEZE_SHARE) else rate


@torch.no_grad()
def update_expert_bias(
    routers: Sequence[Router], counts_LE: Tensor, rate: float, *, centred: bool = False
) -> None:
    """``b += rate · sign(mean count − count)``, in place, for every router.

    Args:
        routers: In the order of the rows of ``counts_LE``.
        counts_LE: Tokens per expert of the whole optimizer step, integers: an expert exactly at the
            mean must get no change, and fp32 cannot tell above 16.7 million.
        rate: Added to or taken from a bias, in units of the score.
        centred: Take the mean of the change away, so that the mean bias stays. Routing is the same
            either way.
    """
    if len(routers) != len(counts_LE):
        raise ValueError(
            f"{len(routers)} routers got counts for {len(counts_LE)}: pass all of them."
        )
    # count · E compared with the sum: the mean itself may not be an integer.
    total_L1 = counts_LE.sum(dim=-1, keepdim=True)
    change_LE = (total_L1 - counts_LE * counts_LE.shape[-1]).sign().to(torch.float32) * rate
    if centred:
        change_LE -= change_LE.mean(dim=-1, keepdim=True)
    for router, change_E in zip(routers, change_LE, strict=True):
        router.expert_bias.add_(change_E)


def sequence_balance_loss(routings: Sequence[Routing], valid_BS: Tensor) -> Tensor:
    """Complementary sequence-wise loss per router, before its weight (DeepSeek-V3, eq. 17-20).

    ``sum_e f_e · P_e`` in each sequence, averaged over sequences: f is E/K times the share of
    tokens whose *unbiased* top k contains the expert, P the mean normalised score. Perfect balance
    reads 1. No epsilon in the normalisation: with one, a router lowers the loss by pushing all its
    scores to zero.

    Args:
        routings: One per router, over the same B·S tokens.
        valid_BS: False for padding.

    Returns:
        ``(L,)``, differentiable through P.
    """
    K, E = routings[0].expert_ids_TK.shape[-1], routings[0].scores_TE.shape[-1]
    scores_LBSE = torch.stack([r.scores_TE.view(*valid_BS.shape, E) for r in routings])
    chosen_LBSE = torch.zeros_like(scores_LBSE).scatter(-1, scores_LBSE.topk(K).indices, 1.0)
    return _share_times_probability(chosen_LBSE, scores_LBSE, valid_BS) * E / K


def balance_loss(routings: Sequence[Routing], valid_BS: Tensor) -> Tensor:
    """Classic auxiliary loss per router, before its weight (Switch, GShard): ``E/K · sum f · P``.

    As :func:`sequence_balance_loss`, over all tokens at once and with f from the experts that were
    really chosen. Per router: pooled over routers it can sit at its floor while each has collapsed.
    """
    K, E = routings[0].expert_ids_TK.shape[-1], routings[0].scores_TE.shape[-1]
    scores_LTE = torch.stack([r.scores_TE for r in routings])
    ids_LTK = torch.stack([r.expert_ids_TK for r in routings])
    chosen_LTE = torch.zeros_like(scores_LTE).scatter(-1, ids_LTK, 1.0)
    one_sequence = valid_BS.reshape(1, -1)
    chosen, scores = chosen_LTE.unsqueeze(1), scores_LTE.unsqueeze(1)
    return _share_times_probability(chosen, scores, one_sequence) * E / K


def _share_times_probability(chosen_LBSE: Tensor, scores_LBSE: Tensor, valid_BS: Tensor) -> Tensor:
    """Mean over sequences of ``sum_e mean_t chosen · mean_t probability``: ``(L,)``."""
    weight_BS1 = valid_BS.to(scores_LBSE.dtype).unsqueeze(-1)
    tokens_B1 = weight_BS1.sum(dim=1).clamp(min=1)
    probability_LBSE = scores_LBSE / scores_LBSE.sum(dim=-1, keepdim=True)
    share_LBE = (chosen_LBSE * weight_BS1).sum(dim=2) / tokens_B1
    mean_LBE = (probability_LBSE * weight_BS1).sum(dim=2) / tokens_B1
    not_empty_B = valid_BS.any(dim=1).to(scores_LBSE.dtype)
    return ((share_LBE * mean_LBE).sum(dim=-1) * not_empty_B).sum(-1) / not_empty_B.sum().clamp(
        min=1
    )


@dataclass(frozen=True, slots=True)
class RouterReport:
    """One optimizer step as plain numbers, a list entry per router in forward order."""

    tokens: int
    """Real tokens that each router saw."""
    tokens_per_expert: list[list[int]]
    """Selected (token, expert) pairs; every row sums to tokens · K."""
    expert_bias: list[list[float]]
    """The bias as it is now."""
    router: dict[str, list[float | None]]
    """Summaries by their name in the run log."""
    scalars: list[float]
    """What came along in the same copy."""


class RouterReadings:
    """Sums over the tokens of one optimizer step, kept on the device until :meth:`report`.

    Plain tensors, neither parameters nor buffers: nothing casts, synchronises or saves them.
    """

    def __init__(self) -> None:
        self._started = False

    def reset(self) -> None:
        """Forget everything: the next optimizer step begins."""
        self._started = False

    @torch.no_grad()
    def add(self, routings: Sequence[Routing], valid_BS: Tensor | None = None) -> None:
        """Count one micro-batch; padding (False in ``valid_BS``) is left out of everything."""
        logits_LTE = torch.stack([r.logits_TE for r in routings])
        scores_LTE = torch.stack([r.scores_TE for r in routings])
        ids_LTK = torch.stack([r.expert_ids_TK for r in routings])
        margin_LT = torch.stack([r.margin_T for r in routings])
        weight_T = torch.ones_like(margin_LT[0], dtype=torch.int64)
        if valid_BS is not None:
            weight_T = valid_BS.flatten().to(torch.int64)
            logits_LTE = logits_LTE.masked_fill(weight_T[:, None] == 0, 0.0)
            margin_LT = margin_LT.masked_fill(weight_T == 0, 0.0)
        real_T = weight_T.to(torch.float32)
        if not self._started:
            self._start(scores_LTE)
        self._tokens += weight_T.sum()
        pairs_LP = weight_T[:, None].expand(ids_LTK.shape).flatten(1)
        self.counts_LE.scatter_add_(1, ids_LTK.flatten(1), pairs_LP)

        probability_LTE = scores_LTE / scores_LTE.sum(dim=-1, keepdim=True)
        entropy_LT = torch.special.entr(probability_LTE).sum(dim=-1)
        selected_LT = probability_LTE.gather(-1, ids_LTK).sum(dim=-1)
        z_LT = logits_LTE.logsumexp(dim=-1).square()
        # A sum and no matrix product: under autocast that would be rounded to bf16.
        sums_4LT = torch.stack((entropy_LT, z_LT, selected_LT, margin_LT)) * real_T
        self._sums_4L += sums_4LT.sum(dim=-1)
        self._probability_LE += (probability_LTE * real_T[:, None]).sum(dim=1)
        peaks_L = logits_LTE.abs().amax(dim=(1, 2))
        torch.maximum(self._max_logit_L, peaks_L, out=self._max_logit_L)

    def _start(self, scores_LTE: Tensor) -> None:
        L, _, E = scores_LTE.shape
        self._started = True
        self._tokens = scores_LTE.new_zeros((), dtype=torch.int64)
        self.counts_LE = scores_LTE.new_zeros((L, E), dtype=torch.int64)
        self._probability_LE = scores_LTE.new_zeros((L, E))
        self._sums_4L = scores_LTE.new_zeros((4, L))
        self._max_logit_L = scores_LTE.new_zeros(L)

    @torch.no_grad()
    def report(self, routers: Sequence[Router], scalars: Sequence[Tensor] = ()) -> RouterReport:
        """Everything of this step in one device-to-host copy, with ``scalars`` along for the ride.

        The copy is fp64: a count is exact in it up to 9·10^15, in fp32 only up to 16.7 million.

        Raises:
            RuntimeError: If no training forward pass was counted since the last reset.
        """
        if not self._started:
            raise RuntimeError(
                "No routing was counted in this step: run the model in training mode."
            )
        L, E = self.counts_LE.shape
        mean_LE = self._probability_LE / self._tokens
        gradients = [
            r.weight.new_zeros(()) if r.weight.grad is None else r.weight.grad for r in routers
        ]
        parts = [
            self._tokens,
            *(value.detach() for value in scalars),
            self.counts_LE,
            torch.stack([r.expert_bias for r in routers]),
            self._sums_4L / self._tokens,
            torch.special.entr(mean_LE).sum(dim=-1),
            self._max_logit_L,
            torch.stack([g.float().norm() for g in gradients]),
        ]
        flat = torch.cat([part.reshape(-1).to(torch.float64) for part in parts]).tolist()
        tokens, flat = int(flat[0]), flat[1:]
        values, flat = flat[: len(scalars)], flat[len(scalars) :]
        counts, flat = _rows(flat[: L * E], E), flat[L * E :]
        bias, rest = _rows(flat[: L * E], E), _rows(flat[L * E :], L)
        entropy, z_loss, selected_mass, margin, mean_entropy, max_logit, grad_norm = rest
        router: dict[str, list[float | None]] = {
            "entropy": [*entropy],
            "mean_entropy": [*mean_entropy],
            "z_loss": [*z_loss],
            "max_logit": [*max_logit],
            "selected_mass": [*selected_mass],
            # Infinite where the groups leave no expert to compare with: no value, not a number.
            "margin": [None if value == float("inf") else value for value in margin],
            "grad_norm": [*grad_norm],
        }
        return RouterReport(tokens, [[int(n) for n in row] for row in counts], bias, router, values)


def _rows(flat: list[float], width: int) -> list[list[float]]:
    return [flat[start : start + width] for start in range(0, len(flat), width)]
