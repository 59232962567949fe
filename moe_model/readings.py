"""Router statistics of one optimizer step: exact counts and the summaries of the run log.

Counting happens here, on the :class:`~moe_model.router.Routing` that a forward pass returns, and
not inside the layers. A layer that is computed again for activation checkpointing is therefore not
counted again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from moe_model.router import Router, Routing


@dataclass(frozen=True, slots=True)
class RouterReport:
    """One optimizer step as plain numbers, a list entry per router in forward order."""

    tokens: int
    """Real tokens of the step; ``router["tokens"]`` where routers saw different numbers."""
    tokens_per_expert: list[list[int]]
    """Selected (token, expert) pairs, dropped ones included; every row sums to tokens · K."""
    expert_bias: list[list[float]]
    """The current bias."""
    router: dict[str, list[float | None]]
    """Summaries by their name in the run log."""
    scalars: list[float]
    """Other scalars from the same copy."""


_MOST_AT_ONCE = 2**24
"""Router logits processed at once: 64 MB in fp32, and some copies of that."""


class Ranks(Protocol):
    """The interface of the processes that train one model together."""

    @property
    def rank(self) -> int:
        """Rank of this process."""

    @property
    def size(self) -> int:
        """Number of processes."""

    def sum(self, tensor: Tensor) -> None:
        """Replace ``tensor`` by its sum over all of them."""


class RouterReadings:
    """Sums over the tokens of one optimizer step, kept on the device until :meth:`report`.

    Plain tensors, neither parameters nor buffers: nothing casts, synchronises or saves them.
    """

    def __init__(self) -> None:
        self._started = False

    def reset(self) -> None:
        """Clear all sums before the next optimizer step."""
        self._started = False

    @torch.no_grad()
    def add(self, routings: Sequence[Routing], valids: Sequence[Tensor | None] = ()) -> None:
        """Count one micro-batch.

        Args:
            routings: One per router.
            valids: For each router, False for padding, which is ignored; ``None`` for no padding.
        """
        if not self._started:
            self._start(len(routings), routings[0].scores_TE)
        # All routers at once would be fastest for small ones, but takes gigabytes for large ones.
        at_once = max(1, _MOST_AT_ONCE // routings[0].scores_TE.numel())
        real = [valid for valid in valids if valid is not None]
        for first in range(0, len(routings), at_once):
            some = slice(first, first + at_once)
            self._add(some, routings[some], real[some])

    def _add(self, some: slice, routings: Sequence[Routing], valids: Sequence[Tensor]) -> None:
        logits_LTE = torch.stack([r.logits_TE for r in routings])
        scores_LTE = torch.stack([r.scores_TE for r in routings])
        ids_LTK = torch.stack([r.expert_ids_TK for r in routings])
        margin_LT = torch.stack([r.margin_T for r in routings])
        kept_LTK = torch.stack([r.kept_TK for r in routings])
        weight_LT = torch.ones_like(margin_LT, dtype=torch.int64)
        if valids:
            weight_LT = torch.stack([valid_BS.flatten() for valid_BS in valids]).to(torch.int64)
            logits_LTE = logits_LTE.masked_fill(weight_LT[..., None] == 0, 0.0)
            margin_LT = margin_LT.masked_fill(weight_LT == 0, 0.0)
        real_LT = weight_LT.to(torch.float32)
        self._tokens_L[some] += weight_LT.sum(dim=-1)
        pairs_LTK = weight_LT[..., None].expand(ids_LTK.shape)
        self.counts_LE[some].scatter_add_(1, ids_LTK.flatten(1), pairs_LTK.flatten(1))
        self._dropped_L[some] += (pairs_LTK * ~kept_LTK).sum(dim=(1, 2))

        probability_LTE = scores_LTE / scores_LTE.sum(dim=-1, keepdim=True)
        entropy_LT = torch.special.entr(probability_LTE).sum(dim=-1)
        selected_LT = probability_LTE.gather(-1, ids_LTK).sum(dim=-1)
        z_LT = logits_LTE.logsumexp(dim=-1).square()
        # A sum and no matrix product: under autocast that would be rounded to bf16.
        sums_4LT = torch.stack((entropy_LT, z_LT, selected_LT, margin_LT)) * real_LT
        self._sums_4L[:, some] += sums_4LT.sum(dim=-1)
        self._probability_LE[some] += (probability_LTE * real_LT[..., None]).sum(dim=1)
        peaks_L = logits_LTE.abs().amax(dim=(1, 2))
        self._max_logit_L[some] = torch.maximum(self._max_logit_L[some], peaks_L)

    def _start(self, routers: int, scores_TE: Tensor) -> None:
        L, E = routers, scores_TE.shape[-1]
        self._started = True
        self._tokens_L = scores_TE.new_zeros(L, dtype=torch.int64)
        self._dropped_L = scores_TE.new_zeros(L, dtype=torch.int64)
        self.counts_LE = scores_TE.new_zeros((L, E), dtype=torch.int64)
        self._probability_LE = scores_TE.new_zeros((L, E))
        self._sums_4L = scores_TE.new_zeros((4, L))
        self._max_logit_L = scores_TE.new_zeros(L)

    @torch.no_grad()
    def all_reduce(self, ranks: Ranks, extra: Tensor) -> Tensor:
        """Sum the readings of all ranks in one collective, together with ``extra``.

        Args:
            ranks: All count the same routers, each on different tokens.
            extra: A vector in fp64, in which a count is exact up to 9·10^15.

        Returns:
            ``extra``, summed.
        """
        if ranks.size == 1:
            return extra
        # A sum cannot compute a maximum, but it can gather the maximum of every rank.
        peaks_RL = self._max_logit_L.new_zeros((ranks.size, len(self._max_logit_L)))
        peaks_RL[ranks.rank] = self._max_logit_L
        sums = [self.counts_LE, self._tokens_L, self._dropped_L]
        sums += [self._sums_4L, self._probability_LE, peaks_RL, extra]
        flat = torch.cat([part.reshape(-1).to(torch.float64) for part in sums])
        ranks.sum(flat)
        sizes = [part.numel() for part in sums]
        for part, summed in zip(sums, torch.split(flat, sizes), strict=True):
            part.copy_(summed.view_as(part))
        self._max_logit_L.copy_(peaks_RL.amax(dim=0))
        return extra

    @torch.no_grad()
    def report(
        self,
        routers: Sequence[Router],
        scalars: Sequence[Tensor] = (),
        grad_norm_L: Tensor | None = None,
    ) -> RouterReport:
        """Copy all readings of this step to the host at once, together with ``scalars``.

        The copy is fp64: a count is exact in it up to 9·10^15, in fp32 only up to 16.7 million.

        Args:
            routers: Of the model, in forward order.
            scalars: Other values to copy to the host.
            grad_norm_L: Norm of the gradient of every router's weight; computed here if absent.

        Raises:
            RuntimeError: If no training forward pass was counted since the last reset.
        """
        if not self._started:
            raise RuntimeError(
                "No routing was counted in this step: run the model in training mode."
            )
        L, E = self.counts_LE.shape
        if len(routers) != L:
            raise RuntimeError(
                f"{L} routers were counted but {len(routers)} are requested: pass the model "
                "next_ids in every training pass, so that multi-token prediction runs."
            )
        parts = [*(v.detach() for v in scalars), *self._parts(routers, grad_norm_L)]
        flat = torch.cat([part.reshape(-1).to(torch.float64) for part in parts]).tolist()
        values, flat = flat[: len(scalars)], flat[len(scalars) :]
        counts, flat = _rows(flat[: L * E], E), flat[L * E :]
        bias, rest = _rows(flat[: L * E], E), _rows(flat[L * E :], L)
        tokens, dropped = rest[:2]
        router: dict[str, list[float | None]] = {
            name: [*row] for name, row in zip(_SUMMARIES, rest[2:], strict=True)
        }
        # Infinite if the groups leave no expert to compare with: reported as no value.
        router["margin"] = [None if v == float("inf") else v for v in router["margin"]]
        if routers[0].config.capacity_factor is not None:
            K = routers[0].config.num_experts_per_tok
            router["drop_rate"] = [d / max(1, t * K) for d, t in zip(dropped, tokens, strict=True)]
        if len(set(tokens)) > 1:  # padding, of which multi-token prediction sees more
            router["tokens"] = [*tokens]
        return RouterReport(
            int(max(tokens)), [[int(n) for n in row] for row in counts], bias, router, values
        )

    def _parts(self, routers: Sequence[Router], grad_norm_L: Tensor | None) -> list[Tensor]:
        """Counts and bias ``(L, E)``, tokens, dropped, then everything in ``_SUMMARIES``."""
        tokens_L = self._tokens_L.clamp(min=1)
        mean_LE = self._probability_LE / tokens_L[:, None]
        if grad_norm_L is None:
            gradients = [r.weight.grad for r in routers]
            norms = [mean_LE.new_zeros(()) if g is None else g.float().norm() for g in gradients]
            grad_norm_L = torch.stack(norms)
        return [
            self.counts_LE,
            torch.stack([r.expert_bias for r in routers]),
            self._tokens_L,
            self._dropped_L,
            self._sums_4L / tokens_L,
            torch.special.entr(mean_LE).sum(dim=-1),
            self._max_logit_L,
            grad_norm_L,
        ]


_SUMMARIES = (
    "entropy", "z_loss", "selected_mass", "margin", "mean_entropy", "max_logit", "grad_norm",
)  # fmt: skip
"""In the order in which they are computed."""


def _rows(flat: list[float], width: int) -> list[list[float]]:
    return [flat[start : start + width] for start in range(0, len(flat), width)]
