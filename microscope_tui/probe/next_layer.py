"""How well a router knows the choices of the next layer: what a prefetch of experts could load.

The input of router l (after its norm) goes through router l + 1 too. Its best k and 2k, by score
plus bias within the best groups, are compared with what router l + 1 chooses in the same pass. A
router whose own input shows that it chooses by another rule is left out.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from microscope_tui.probe.counter import Traced, scores_of
from microscope_tui.probe.find_routers import with_configs
from microscope_tui.probe.sites import Site, is_size, setting
from microscope_tui.probe.step_sums import Key, shortened

_logger = logging.getLogger(__name__)
LEAST_REPRODUCED = 0.98
"""Share of a router's own choices that the rule must find. Ties in bf16 cost less than 1 %."""
_GROUPS = ("num_group", "n_group", "num_expert_group")
_BEST_OF_GROUP = {"greedy": 0, "group_limited_greedy": 1}
"""How many experts score a group, by ``topk_method``: else 2, as in DeepSeek-V3."""


class NextLayer:
    """Hooks on the routers of a model; call ``count`` after each forward pass."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self._sites = sites
        self._kinds = [re.sub(r"\d+", "#", site.path) for site in sites]
        """The same for routers of one kind in several layers."""
        self._inputs: dict[str, tuple[Any, Any]] = {}
        self._calls: dict[int, tuple[Tensor, Tensor]] = {}
        """What the rule chooses for its own input, and for that of the layer before."""
        self._hits_3E: dict[int, Tensor] = {}
        """Pairs that are found with its own input, and in the top k and 2k ahead."""
        self._unknown: set[int] = set()
        self._handles = [
            site.scores.module.register_forward_hook(partial(self._see, place), with_kwargs=True)
            for place, site in enumerate(sites)
            if site.scores is not None
        ]

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _see(self, place: int, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        site, kind = self._sites[place], self._kinds[place]
        if kind in self._inputs:
            if place in self._calls:  # a looped layer
                self._unknown.add(place)
            before, named = self._inputs[kind]
            try:
                ahead = module.forward(*before, **named)  # a call would run the hooks
                self._calls[place] = _best(site, args, output), _best(site, before, ahead)
            except Exception:  # of a model that is not ours: the trace matters more
                self._unknown.add(place)
        self._inputs[kind] = args, kwargs

    def count(self, traced: Mapping[Key, Traced], real_BS: Tensor | None) -> None:
        """Compare with the choices of this pass, of real tokens only."""
        for place, calls in self._calls.items():
            E, k = self._sites[place].num_experts, self._sites[place].top_k
            own_TK, ahead_TK = calls
            if real_BS is not None and real_BS.numel() == len(own_TK):
                own_TK, ahead_TK = (ids_TK[real_BS.reshape(-1)] for ids_TK in calls)
            if (place, 0) not in traced or len(traced[place, 0].ids_TK) != len(own_TK):
                self._unknown.add(place)
                continue
            chosen_TK = traced[place, 0].ids_TK
            hits_3E = torch.stack(
                [
                    _found(chosen_TK, ids_TK, E)
                    for ids_TK in (own_TK[:, :k], ahead_TK[:, :k], ahead_TK)
                ]
            )
            self._hits_3E[place] = self._hits_3E.get(place, 0) + hits_3E
        self._calls.clear()
        self._inputs.clear()

    def tables(self, keys: Sequence[Key], pairs: Sequence[int]) -> list[list[list[int]] | None]:
        """``Tables.next_layer`` of these routers with so many pairs; warns of those left out."""
        tables: list[list[list[int]] | None] = []
        left_out = []
        for (place, _), whole in zip(keys, pairs, strict=True):
            own, *ahead = self._hits_3E.get(place, torch.zeros(1, 1)).tolist()
            known = place not in self._unknown and sum(own) >= LEAST_REPRODUCED * whole
            tables.append(ahead if ahead and known else None)
            if tables[-1] is None and self._kinds[place] in self._kinds[:place]:
                left_out.append(self._sites[place].name)
        if left_out:
            why = "how they choose is not known"
            _logger.warning("--next-layer leaves out %s: %s", shortened(left_out), why)
        return tables


def _best(site: Site, args: tuple[Any, ...], output: Any) -> Tensor:
    """The best 2k experts by the rule of the router, int64 ``[T, 2K]``; −2 is none."""
    assert site.scores is not None
    index = site.scores.index
    if index is None:
        logits = site.read(site.module, args, output).logits_TE
    else:
        logits = output[index] if isinstance(output, tuple | list) else output
    if logits is None or logits.shape[-1] != site.num_experts or not site.scores.kind:
        raise ValueError("scores per expert are not known")
    logits_TE = logits.reshape(-1, site.num_experts).float()
    choice_TE = scores_of(logits_TE, logits_TE.logsumexp(-1, keepdim=True), site.scores.kind)
    if (bias_E := site.bias()) is not None:
        choice_TE = choice_TE + bias_E.to(choice_TE)
    holders = with_configs(site.router, site.block)
    groups = setting(holders, _GROUPS, is_size) or 1
    judges = _BEST_OF_GROUP.get(setting(holders, ("topk_method",), bool), 2)
    if groups > 1 and judges:
        kept = setting(holders, ("topk_group",), is_size)
        choice_TGe = choice_TE.view(len(choice_TE), groups, -1)
        best_TG = choice_TGe.topk(judges).values.sum(-1).topk(kept).indices
        dropped_TG = torch.ones_like(choice_TGe[..., 0]).scatter(-1, best_TG, 0).bool()
        choice_TE = choice_TGe.masked_fill(dropped_TG[..., None], -torch.inf).flatten(1)
    values, ids_TK = choice_TE.topk(min(2 * site.top_k, site.num_experts))
    return ids_TK.masked_fill(values == -torch.inf, -2)


def _found(chosen_TK: Tensor, ids_TK: Tensor, num_experts: int) -> Tensor:
    """How many of the chosen pairs of each expert are among ``ids_TK``, int64 ``[E]``."""
    found_TK = (chosen_TK[:, :, None] == ids_TK[:, None, :]).any(dim=-1)
    return torch.bincount(chosen_TK[found_TK], minlength=num_experts)
