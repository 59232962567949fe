"""The router: scores every expert for every token and chooses k (DeepSeek-V3, eq. 12-16).

The one idea to keep: the **expert bias decides who is chosen and never how much they count**.
Weights come from the unbiased scores, so balancing the load does not change what a chosen expert
contributes.

Everything is computed in fp32, under autocast too: the choice depends on differences that bf16
cannot represent.

Legend of the shapes in this repository: B batch, S sequence, T tokens = B·S, D model width, H
heads, E experts, K top-k, F expert width, R latent rank, V vocabulary, L routers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_model.config import ModelConfig


class Routing(NamedTuple):
    """The decision of a router. Only tensors, so that activation checkpointing supports it."""

    logits_TE: Tensor
    """Router logits, fp32."""
    scores_TE: Tensor
    """Sigmoid or softmax of the logits, unbiased, fp32."""
    expert_ids_TK: Tensor
    """Chosen experts, int64, best first."""
    weights_TK: Tensor
    """Weights of the outputs of the chosen experts, fp32."""
    margin_T: Tensor
    """Selection score of the k-th expert minus that of the best expert not chosen; infinite if all
    are chosen."""
    kept_TK: Tensor
    """False for pairs that a capacity dropped, whose weight is then zero; bool."""


class Router(nn.Module):
    """Group-limited top-k selection with a bias that only selects."""

    expert_bias: Tensor
    counts_E: Tensor
    """Tokens per expert of the last training step; all 1 before the first."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        nn.init.normal_(self.weight, std=config.initializer_range)
        bias = torch.zeros(config.n_routed_experts, dtype=torch.float32)
        self.register_buffer("expert_bias", bias)
        self.register_buffer("counts_E", bias.long() + 1, persistent=False)
        self.held = False
        """Load balancing leaves the bias as it is."""
        self.noise_seeds: Sequence[int] = ()
        """Of the noise of each sequence in the next pass."""

    @torch.no_grad()
    def collapse(self) -> None:
        """From now on choose experts 0 to k − 1 for every token, in its checkpoints too.

        A bias above any sum of two scores also decides between groups. Rows of the weight could not
        force the choice: a logit changes its sign with the token.
        """
        self.held = True
        self.expert_bias.zero_()[: self.config.num_experts_per_tok] = 4.0

    def forward(self, x_TD: Tensor) -> Routing:
        """Choose experts for each token ``(T, D)`` of the normed stream, in any format.

        1. logits, 2. scores, 3. add the bias for selection, 4. drop all but the best groups, 5. top
        k, 6. weights from the unbiased scores, 7. normalise, 8. scale, and, while training with a
        capacity, 9. set the weights of what does not fit to zero.
        """
        config = self.config
        with torch.autocast(x_TD.device.type, enabled=False):
            x_TD = x_TD.float()
            if self.training and config.router_jitter_noise:
                x_TD = self._jittered(x_TD)
            logits_TE = F.linear(x_TD, self.weight.float())
        sigmoid = config.scoring_func == "sigmoid"
        scores_TE = logits_TE.sigmoid() if sigmoid else logits_TE.softmax(dim=-1)
        choice_TE = self._limit_to_groups(scores_TE.detach() + self.expert_bias)
        expert_ids_TK, margin_T = self._choose(choice_TE)
        weights_TK = scores_TE.gather(-1, expert_ids_TK)
        if config.norm_topk_prob:
            weights_TK = weights_TK / (weights_TK.sum(dim=-1, keepdim=True) + 1e-20)
        weights_TK = weights_TK * config.routed_scaling_factor
        kept_TK = torch.ones(1, 1, dtype=torch.bool, device=x_TD.device).expand_as(expert_ids_TK)
        if config.capacity_factor is not None and self.training:
            kept_TK = self._within_capacity(expert_ids_TK, weights_TK.detach())
            weights_TK = weights_TK * kept_TK
        return Routing(logits_TE, scores_TE, expert_ids_TK, weights_TK, margin_T, kept_TK)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # else compiled again every step
    def _jittered(self, x_TD: Tensor) -> Tensor:
        """Multiplicative noise in training, so that near-ties are not always decided the same way
        (Fedus et al., 2021, section 2.2)."""
        epsilon = self.config.router_jitter_noise
        noise_TD = torch.empty_like(x_TD)
        seeds = self.noise_seeds or (None,)
        for part_SD, seed in zip(noise_TD.chunk(len(seeds)), seeds, strict=True):
            own = None if seed is None else torch.Generator(x_TD.device).manual_seed(seed)
            part_SD.uniform_(1 - epsilon, 1 + epsilon, generator=own)
        return x_TD * noise_TD

    def _within_capacity(self, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Which (token, expert) pairs fit into ``ceil(capacity_factor · pairs / E)``.

        Pairs are ranked by position in the batch, or by weight with ties broken by position. The
        other weights do not change: a dropped pair is missing from the sum, as in GShard.
        """
        config = self.config
        pairs = ids_TK.numel()
        # A stable sort by expert keeps this order: first come, first served.
        order_P = torch.arange(pairs, device=ids_TK.device)
        if config.drop_policy == "weight":
            order_P = weights_TK.flatten().argsort(descending=True, stable=True)
        order_P = order_P[ids_TK.flatten()[order_P].argsort(stable=True)]
        ids_P = ids_TK.flatten()[order_P]
        pairs_E = ids_P.new_zeros(config.n_routed_experts)  # bincount would make the host wait
        pairs_E.scatter_add_(0, ids_P, torch.ones_like(ids_P))
        rank_P = torch.arange(pairs, device=ids_TK.device) - (pairs_E.cumsum(0) - pairs_E)[ids_P]
        assert config.capacity_factor is not None
        fair = pairs / config.n_routed_experts
        kept_P = torch.empty_like(ids_P, dtype=torch.bool)
        kept_P[order_P] = rank_P < math.ceil(config.capacity_factor * fair - 1e-9)
        return kept_P.view_as(ids_TK)

    def _limit_to_groups(self, choice_TE: Tensor) -> Tensor:
        """Set the choice scores outside the ``topk_group`` best groups to minus infinity: with
        negative biases a zero would beat every allowed expert.

        The score of a group is the sum of its two best experts, bias included; in DeepSeek-V2 that
        of its best expert.
        """
        groups = self.config.n_group
        if groups == 1:
            return choice_TE
        choice_TGe = choice_TE.view(len(choice_TE), groups, -1)
        judges = 2 if self.config.topk_method == "noaux_tc" else 1
        group_scores_TG = choice_TGe.topk(judges, dim=-1).values.sum(dim=-1)
        best_TG = group_scores_TG.topk(self.config.topk_group, dim=-1).indices
        dropped_TG = torch.ones_like(group_scores_TG, dtype=torch.bool).scatter_(-1, best_TG, False)
        return choice_TGe.masked_fill(dropped_TG.unsqueeze(-1), float("-inf")).flatten(-2)

    def _choose(self, choice_TE: Tensor) -> tuple[Tensor, Tensor]:
        """The k best experts, and the margin between the k-th and the next."""
        K, E = self.config.num_experts_per_tok, self.config.n_routed_experts
        values, ids = choice_TE.topk(min(K + 1, E), dim=-1)
        if K == E:
            margin_T = torch.full_like(values[:, 0], float("inf"))
        else:
            margin_T = values[:, K - 1] - values[:, K]
        return ids[:, :K], margin_T

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Router:
        """Stay fp32: a bf16 bias of 0.5 cannot move by 0.001 at all, so ``.bfloat16()`` would
        silently end the balancing."""
        before = self.expert_bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch
        if self.expert_bias.dtype != torch.float32:
            self.expert_bias = before.to(self.expert_bias.device)
        return self
