"""The router: scores every expert for every token and chooses k (DeepSeek-V3, eq. 12-16).

The one idea to keep: the **expert bias decides who is chosen and never how much they count**.
Weights come from the unbiased scores, so balancing the load does not change what a chosen expert
contributes.

Everything is computed in fp32, under autocast too: a token's choice hangs on differences that bf16
cannot represent.

Legend of the shapes in this repository: B batch, S sequence, T tokens = B·S, D model width, H
heads, E experts, K top-k, F expert width, R latent rank, V vocabulary, L routers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_model.config import ModelConfig


class Routing(NamedTuple):
    """What a router decided. Only tensors, so that it passes through activation checkpointing."""

    logits_TE: Tensor
    """Router logits, fp32."""
    scores_TE: Tensor
    """Sigmoid or softmax of the logits, unbiased, fp32."""
    expert_ids_TK: Tensor
    """Chosen experts, int64, best first."""
    weights_TK: Tensor
    """What the outputs of the chosen experts are multiplied with, fp32."""
    margin_T: Tensor
    """Selection score of the k-th expert minus that of the best one left out; infinite where there
    is none to leave out."""


class Router(nn.Module):
    """Group-limited top-k selection with a bias that only selects."""

    expert_bias: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        nn.init.normal_(self.weight, std=config.initializer_range)
        bias = torch.zeros(config.n_routed_experts, dtype=torch.float32)
        self.register_buffer("expert_bias", bias)
        self.forced_experts: tuple[int, ...] | None = None
        """While training, send every token to these k experts: a collapse on demand."""

    def forward(self, x_TD: Tensor) -> Routing:
        """Choose experts for each token.

        1. logits, 2. scores, 3. add the bias for selection, 4. drop all but the best groups,
        5. top k, 6. weights from the unbiased scores, 7. normalise, 8. scale.
        """
        config = self.config
        with torch.autocast(x_TD.device.type, enabled=False):
            logits_TE = F.linear(x_TD.float(), self.weight.float())
        scores_TE = logits_TE.sigmoid() if self._sigmoid else logits_TE.softmax(dim=-1)
        choice_TE = self._limit_to_groups(scores_TE.detach() + self.expert_bias)
        expert_ids_TK, margin_T = self._choose(choice_TE)
        weights_TK = scores_TE.gather(-1, expert_ids_TK)
        if config.norm_topk_prob:
            weights_TK = weights_TK / (weights_TK.sum(dim=-1, keepdim=True) + 1e-20)
        weights_TK = weights_TK * config.routed_scaling_factor
        return Routing(logits_TE, scores_TE, expert_ids_TK, weights_TK, margin_T)

    @property
    def _sigmoid(self) -> bool:
        return self.config.scoring_func == "sigmoid"

    def _limit_to_groups(self, choice_TE: Tensor) -> Tensor:
        """Set the choice scores outside the ``topk_group`` best groups to minus infinity.

        A group is as good as the sum of its two best experts, bias included. Not zero but minus
        infinity: with negative biases a zero would win against every expert that is allowed.
        """
        groups = self.config.n_group
        if groups == 1:
            return choice_TE
        choice_TGe = choice_TE.view(len(choice_TE), groups, -1)
        group_scores_TG = choice_TGe.topk(2, dim=-1).values.sum(dim=-1)
        best_TG = group_scores_TG.topk(self.config.topk_group, dim=-1).indices
        dropped_TG = torch.ones_like(group_scores_TG, dtype=torch.bool).scatter_(-1, best_TG, False)
        return choice_TGe.masked_fill(dropped_TG.unsqueeze(-1), float("-inf")).flatten(-2)

    def _choose(self, choice_TE: Tensor) -> tuple[Tensor, Tensor]:
        """The k best experts, and by how much the last of them beat the next."""
        K, E = self.config.num_experts_per_tok, self.config.n_routed_experts
        values, ids = choice_TE.topk(min(K + 1, E), dim=-1)
        if K == E:
            margin_T = torch.full_like(values[:, 0], float("inf"))
        else:
            margin_T = values[:, K - 1] - values[:, K]
        ids_TK = ids[:, :K]
        if self.forced_experts is not None and self.training:
            ids_TK = ids_TK.new_tensor(self.forced_experts).expand_as(ids_TK)
        return ids_TK, margin_T

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Router:
        """Move with the module, but stay fp32.

        A bf16 bias of 0.5 cannot move by 0.001 at all, so ``.bfloat16()``, ``.half()`` and
        ``.to(dtype)`` would silently end the balancing.
        """
        before = self.expert_bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch
        if self.expert_bias.dtype != torch.float32:
            self.expert_bias = before.to(self.expert_bias.device)
        return self
