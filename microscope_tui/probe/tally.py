"""Sums over the tokens that routers saw in one optimizer step, on their device until the line.

L calls of routers are counted at once. Counts are integers; nothing here waits for the device, and
no id can be out of range: those outside the experts share a slot of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SUMS = ("entropy", "z_loss", "selected_mass", "margin", "scored", "dropped")
"""Sums over real tokens, in fp64; ``scored`` is how many had logits."""
_TINY = torch.finfo(torch.float32).tiny

Scored = tuple[Tensor, Tensor | None]
"""Entropy and margin of every token, ``[L, T]``; no margin where there is none."""


class Tally:
    """What L passes through routers with the same number of experts did in one step."""

    def __init__(
        self, keys: tuple[tuple[int, int], ...], num_experts: int, top_k: int, device: torch.device
    ) -> None:
        L, E = len(keys), num_experts
        self.keys = keys
        """Place of the site, and number of the pass through it, where it runs several times."""
        self.num_experts, self.top_k = E, top_k
        self.counts_LE2 = torch.zeros(L, E + 2, dtype=torch.int64, device=device)
        """Pairs per expert, then those that went to no real expert, then those of padding."""
        self.tokens_L1 = torch.zeros(L, 1, dtype=torch.int64, device=device)
        self.sums_LN = torch.zeros(L, len(SUMS), dtype=torch.float64, device=device)
        self.probability_LE = torch.zeros(L, E, dtype=torch.float64, device=device)
        self.max_logit_L = torch.zeros(L, dtype=torch.float32, device=device)
        self.weight_LE = torch.zeros(L, E, dtype=torch.float64, device=device)
        self.norm_LE = torch.zeros(L, E, dtype=torch.float64, device=device)

    def add(self, ids_LTK: Tensor, real_LT: Tensor | None, kept_LTK: Tensor | None) -> Tensor:
        """Count L calls; returns the slot of every pair, ``[L, T, K]``.

        Args:
            ids_LTK: Chosen experts; any other id counts as unrouted.
            real_LT: False for padding; ``None`` where there is none.
            kept_LTK: False where a capacity dropped the pair; ``None`` where none can.
        """
        E = self.num_experts
        slots_LTK = ids_LTK.where((ids_LTK >= 0) & (ids_LTK < E), E)
        if real_LT is not None:
            slots_LTK = slots_LTK.where(real_LT[..., None], E + 1)
            self.tokens_L1 += real_LT.sum(dim=-1, keepdim=True)
        else:
            self.tokens_L1 += ids_LTK.shape[1]
        slots_LP = slots_LTK.flatten(1)
        self.counts_LE2.scatter_add_(1, slots_LP, torch.ones_like(slots_LP))
        if kept_LTK is not None:
            dropped_LTK = ~kept_LTK.reshape(slots_LTK.shape) & (slots_LTK < E)
            self.sums_LN[:, SUMS.index("dropped")] += dropped_LTK.sum(dim=(1, 2))
        return slots_LTK

    def add_scores(
        self,
        logits_LTE: Tensor,
        kind: str,
        slots_LTK: Tensor,
        bias_LE: Tensor | None,
        margin: bool,
        padded: bool,
    ) -> Scored:
        """Add what the routers scored; see ``Scores`` for the kinds.

        Args:
            slots_LTK: What ``add`` returned.
            bias_LE: Selection bias, added to the probabilities or scores before the choice.
            margin: Whether the choice is the plain top k of the scores, so that there is one.
            padded: Whether some tokens may be padding.
        """
        E, logits_LTE = self.num_experts, logits_LTE.float()
        real_LT = slots_LTK[..., 0] != E + 1
        if padded:
            logits_LTE = logits_LTE.masked_fill(~real_LT[..., None], 0.0)
        log_sum_LT1 = logits_LTE.logsumexp(dim=-1, keepdim=True)
        # Scores of skip and identity slots come after those of the experts: left out.
        scores_LTE = _scores(logits_LTE, log_sum_LT1, kind)[..., :E]
        probability_LTE = scores_LTE / scores_LTE.sum(dim=-1, keepdim=True)
        chosen_LTK = slots_LTK.clamp(max=E - 1)
        selected_LT = (probability_LTE.gather(-1, chosen_LTK) * (slots_LTK < E)).sum(dim=-1)
        # As torch.special.entr, which is several times as slow on a CPU.
        entropy_LT = -(probability_LTE * probability_LTE.clamp_min(_TINY).log()).sum(dim=-1)
        zero_LT = torch.zeros_like(entropy_LT)
        z_LT = zero_LT if kind == "probabilities" else log_sum_LT1[..., 0].square()
        plain = margin and logits_LTE.shape[-1] == E > chosen_LTK.shape[-1]
        margin_LT = _margin(scores_LTE, chosen_LTK, bias_LE) if plain else zero_LT
        sums_L5T = torch.stack((entropy_LT, z_LT, selected_LT, margin_LT, zero_LT + 1.0), dim=1)
        if padded:  # chosen and not multiplied: what padding scores may not be finite
            sums_L5T = sums_L5T.where(real_LT[:, None], 0.0)
            probability_LTE = probability_LTE.where(real_LT[..., None], 0.0)
        self.sums_LN[:, :5] += sums_L5T.sum(dim=-1, dtype=torch.float64)
        self.probability_LE += probability_LTE.sum(dim=1, dtype=torch.float64)
        self.max_logit_L = torch.maximum(self.max_logit_L, logits_LTE.abs().amax(dim=(1, 2)))
        return entropy_LT, margin_LT if plain else None

    def add_weights(self, weights_LTK: Tensor, slots_LTK: Tensor) -> None:
        """Add what the outputs of the chosen experts are multiplied with."""
        self._spread(self.weight_LE, weights_LTK, slots_LTK)

    def add_norms(self, norms_LTK: Tensor, slots_LTK: Tensor) -> None:
        """Add the norms of the outputs of the chosen experts."""
        self._spread(self.norm_LE, norms_LTK, slots_LTK)

    def _spread(self, into_LE: Tensor, values_LTK: Tensor, slots_LTK: Tensor) -> None:
        spread_LE2 = torch.zeros_like(self.counts_LE2, dtype=into_LE.dtype)
        slots_LP = slots_LTK.flatten(1)
        values_LP = values_LTK.detach().reshape(slots_LP.shape).to(into_LE.dtype)
        into_LE += spread_LE2.scatter_add_(1, slots_LP, values_LP)[:, : self.num_experts]

    def flat(self) -> Tensor:
        """Everything that is summed over ranks, ``[L, size]`` in fp64: a count is exact up to
        9·10^15."""
        parts: tuple[Tensor, ...] = (self.counts_LE2[:, :-1], self.tokens_L1, self.sums_LN)
        parts += (self.probability_LE, self.weight_LE, self.norm_LE)
        return torch.cat([part.to(torch.float64) for part in parts], dim=1)

    @staticmethod
    def size(num_experts: int) -> int:
        """Numbers of a router in ``flat``."""
        return 4 * num_experts + 2 + len(SUMS)


def _scores(logits_LTE: Tensor, log_sum_LT1: Tensor, kind: str) -> Tensor:
    if kind == "probabilities":
        return logits_LTE
    if kind == "sqrtsoftplus":
        return nn.functional.softplus(logits_LTE).sqrt()
    # A softmax from the sum that the z-loss needs too: torch's own is slow on a CPU in few columns.
    return logits_LTE.sigmoid() if kind == "sigmoid" else (logits_LTE - log_sum_LT1).exp()


def _margin(scores_LTE: Tensor, chosen_LTK: Tensor, bias_LE: Tensor | None) -> Tensor:
    """Distance of the last chosen to the best one that was left out."""
    if bias_LE is not None:
        scores_LTE = scores_LTE + bias_LE[:, None].to(scores_LTE)
    last_LT = scores_LTE.gather(-1, chosen_LTK).amin(dim=-1)
    best_LT = scores_LTE.scatter(-1, chosen_LTK, float("-inf")).amax(dim=-1)
    return last_LT - best_LT
