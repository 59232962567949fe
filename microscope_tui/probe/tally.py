"""Sums over the tokens that one router saw in one optimizer step, on its device until the line.

Counts are integers; nothing here waits for the device, and no id can be out of range: what is no
real expert lands in a slot of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from microscope_tui.probe.sites import Choice

SUMS = ("entropy", "z_loss", "selected_mass", "margin", "scored", "dropped")
"""Sums over real tokens, in fp64; ``scored`` is how many had logits."""


class Tally:
    """What one router did in one step: of one pass of it, where a layer is run several times."""

    def __init__(self, num_experts: int, device: torch.device) -> None:
        E = num_experts
        self.num_experts, self.top_k = E, 0
        self.counts_E2 = torch.zeros(E + 2, dtype=torch.int64, device=device)
        """Pairs per expert, then those that went to no real expert, then those of padding."""
        self.tokens = torch.zeros((), dtype=torch.int64, device=device)
        self.sums_N = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        self.probability_E = torch.zeros(E, dtype=torch.float64, device=device)
        self.max_logit = torch.zeros((), dtype=torch.float32, device=device)
        self.weight_E = torch.zeros(E, dtype=torch.float64, device=device)
        self.norm_E = torch.zeros(E, dtype=torch.float64, device=device)

    def add(self, choice: Choice, real_T: Tensor | None) -> Tensor:
        """Count one call; returns the slot of every pair, ``[T, K]``."""
        ids_TK = choice.ids_TK.detach()
        E, ids_TK = self.num_experts, ids_TK.reshape(-1, ids_TK.shape[-1]).long()
        self.top_k = ids_TK.shape[-1]
        slots_TK = ids_TK.where((ids_TK >= 0) & (ids_TK < E), ids_TK.new_full((), E))
        if real_T is not None:
            real_T = real_T.to(ids_TK.device)
            slots_TK = slots_TK.where(real_T[:, None], slots_TK.new_full((), E + 1))
            self.tokens += real_T.sum()
        else:
            self.tokens += len(ids_TK)
        slots_P = slots_TK.reshape(-1)
        self.counts_E2.scatter_add_(0, slots_P, torch.ones_like(slots_P))
        if choice.kept_TK is not None:
            dropped_TK = ~choice.kept_TK & (slots_TK < E)
            self.sums_N[SUMS.index("dropped")] += dropped_TK.sum()
        return slots_TK

    def add_scores(
        self, logits_TE: Tensor, kind: str, slots_TK: Tensor, bias_E: Tensor | None, margin: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Add what the router scored; see ``Scores`` for the kinds.

        Returns entropy and margin of every token; no margin where there is none.

        Args:
            slots_TK: What ``add`` returned.
            bias_E: Selection bias, added to the probabilities or scores before the choice.
            margin: Whether the choice is the plain top k of the scores, so that there is one.
        """
        E = self.num_experts
        real_T = slots_TK[:, 0] != E + 1
        logits_TE = logits_TE.detach().float().masked_fill(~real_T[:, None], 0.0)
        log_sum_T1 = logits_TE.logsumexp(dim=-1, keepdim=True)
        # Scores of skip and identity slots come after those of the experts: left out.
        scores_TE = _scores(logits_TE, log_sum_T1, kind)[:, :E]
        probability_TE = scores_TE / scores_TE.sum(dim=-1, keepdim=True)
        chosen_TK = slots_TK.clamp(max=E - 1)
        selected_T = (probability_TE.gather(1, chosen_TK) * (slots_TK < E)).sum(dim=-1)
        entropy_T = torch.special.entr(probability_TE).sum(dim=-1)
        zero_T = torch.zeros_like(entropy_T)
        z_T = zero_T if kind == "probabilities" else log_sum_T1[:, 0].square()
        plain = margin and logits_TE.shape[-1] == E > chosen_TK.shape[-1]
        margin_T = _margin(scores_TE, chosen_TK, bias_E) if plain else zero_T
        sums_5T = torch.stack((entropy_T, z_T, selected_T, margin_T, torch.ones_like(z_T)))
        # Chosen and not multiplied: what padding scores may not be finite.
        self.sums_N[:5] += sums_5T.where(real_T, 0.0).sum(dim=-1, dtype=torch.float64)
        real_TE = probability_TE.where(real_T[:, None], 0.0)
        self.probability_E += real_TE.sum(dim=0, dtype=torch.float64)
        self.max_logit = torch.maximum(self.max_logit, logits_TE.abs().amax())
        return entropy_T, margin_T if plain else None

    def add_weights(self, weights_TK: Tensor, slots_TK: Tensor) -> None:
        """Add what the outputs of the chosen experts are multiplied with."""
        self._spread(self.weight_E, weights_TK, slots_TK)

    def add_norms(self, norms_TK: Tensor, slots_TK: Tensor) -> None:
        """Add the norms of the outputs of the chosen experts."""
        self._spread(self.norm_E, norms_TK, slots_TK)

    def _spread(self, into_E: Tensor, values_TK: Tensor, slots_TK: Tensor) -> None:
        spread_E2 = torch.zeros(self.num_experts + 2, dtype=into_E.dtype, device=into_E.device)
        values_P = values_TK.detach().reshape(-1).to(into_E.dtype)
        spread_E2.scatter_add_(0, slots_TK.reshape(-1), values_P)
        into_E += spread_E2[: self.num_experts]

    def flat(self) -> Tensor:
        """Everything that is summed over ranks, in fp64: a count is exact up to 9·10^15."""
        parts: tuple[Tensor, ...] = (
            self.counts_E2[:-1],
            self.tokens[None],
            self.sums_N,
            self.probability_E,
        )
        parts += (self.weight_E, self.norm_E)
        return torch.cat([part.to(torch.float64) for part in parts])

    @staticmethod
    def size(num_experts: int) -> int:
        """Numbers in ``flat``."""
        return 4 * num_experts + 2 + len(SUMS)


def _scores(logits_TE: Tensor, log_sum_T1: Tensor, kind: str) -> Tensor:
    if kind == "probabilities":
        return logits_TE
    if kind == "sqrtsoftplus":
        return nn.functional.softplus(logits_TE).sqrt()
    # A softmax from the sum that the z-loss needs too: torch's own is slow on a CPU in few columns.
    return logits_TE.sigmoid() if kind == "sigmoid" else (logits_TE - log_sum_T1).exp()


def _margin(scores_TE: Tensor, chosen_TK: Tensor, bias_E: Tensor | None) -> Tensor:
    """Distance of the last chosen to the best one that was left out."""
    if bias_E is not None:
        scores_TE = scores_TE + bias_E.to(scores_TE)
    last_T = scores_TE.gather(1, chosen_TK).amin(dim=-1)
    best_T = scores_TE.scatter(1, chosen_TK, float("-inf")).amax(dim=-1)
    return last_T - best_T
