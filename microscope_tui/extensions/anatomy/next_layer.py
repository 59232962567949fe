"""How well a router knows the choices of the next one: what a prefetch of experts could load.

The input of router l goes through router l + 1 too; its best k and 2k are compared with what router
l + 1 chooses in the same pass, if the same rule finds these with its own input.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from microscope_tui.probe.counter import Traced, scores_of
from microscope_tui.probe.find_routers import with_configs
from microscope_tui.probe.forward_hooks import ForwardHooks
from microscope_tui.probe.sites import Site, is_size, setting
from microscope_tui.probe.step_sums import Key

_logger = logging.getLogger(__name__)
_LEAST_REPRODUCED = 0.98
"""Share of its own choices that the rule has to find. Ties in bf16 cost less than 1 %."""


class NextLayer:
    """Call ``count`` after each forward pass, which has no padding."""

    def __init__(self, hooks: ForwardHooks) -> None:
        self._sites = hooks.sites
        self._inputs: dict[str, tuple[Any, ...]] = {}
        """Of the latest router of each stack."""
        self._best: dict[int, Sequence[Tensor]] = {}
        """The best k with its own input, the best k and 2k ahead."""
        self._sums: dict[int, Any] = {}
        """Pairs, and those found in each of the three."""
        for place, site in enumerate(self._sites):
            if site.scores is not None:
                hooks.hook(site.scores.module.register_forward_hook, partial(self._see, place))

    def _see(self, place: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        site = self._sites[place]
        before = self._inputs.get(site.stack)
        self._inputs[site.stack] = args
        if before is not None:
            try:
                ahead = module.forward(*before)  # a call would run the hooks
                own_TK, ahead_TK = _best(site, args, output), _best(site, before, ahead)
            except Exception:  # of a model that is not ours: it is left out, with a warning
                return
            self._best[place] = own_TK[:, : site.top_k], ahead_TK[:, : site.top_k], ahead_TK

    def count(self, traced: Mapping[Key, Traced]) -> None:
        """Compare the choices of a forward pass with what each router would choose one layer
        earlier.

        Forgets what it kept of the pass.
        """
        for (place, _), one in traced.items():
            best = self._best.get(place)
            chosen_TK = one.ids_TK
            if best is not None and len(best[0]) == len(chosen_TK):
                found = [(chosen_TK[..., None] == ids_TK[:, None]).any(-1) for ids_TK in best]
                sums = torch.stack([mask_TK.sum() for mask_TK in (chosen_TK >= 0, *found)])
                self._sums[place] = self._sums.get(place, 0) + sums
        self._best.clear()
        self._inputs.clear()

    def table(self, keys: Sequence[Key]) -> list[tuple[float, float] | None]:
        """What ``Tables.next_layer`` holds, for these routers; ``None`` where it cannot be
        known.
        """
        shares = []
        for place, _ in keys:
            pairs, own, best_k, best_2k = self._sums.get(place, torch.zeros(4)).tolist()
            known = own >= _LEAST_REPRODUCED * pairs > 0
            shares.append((best_k / pairs, best_2k / pairs) if known else None)
        if (unknown := shares[1:].count(None)) > 0:
            _logger.warning("--next-layer leaves out %d routers: their rule is not known", unknown)
        return shares


def _best(site: Site, args: tuple[Any, ...], output: Any) -> Tensor:
    assert site.scores is not None
    logits: Any = output
    if site.scores.index is None:
        logits = site.read(site.module, args, output).logits_TE
    elif isinstance(output, tuple | list):
        logits = output[site.scores.index]
    logits_TE = logits.reshape(-1, site.num_experts).float()
    choice_TE = scores_of(logits_TE, logits_TE.logsumexp(-1, keepdim=True), site.scores.kind)
    if (bias_E := site.bias()) is not None:
        choice_TE = choice_TE + bias_E.to(choice_TE)
    holders = with_configs(site.router, site.block)
    groups = setting(holders, ("n_group", "num_expert_group"), is_size) or 1
    if groups > 1:  # the best two of a group judge it, as in DeepSeek-V3
        choice_TGe = choice_TE.view(len(choice_TE), groups, -1)
        best_TG = choice_TGe.topk(2).values.sum(-1)
        kept = setting(holders, ("topk_group",), is_size)
        weak_TG = best_TG < best_TG.topk(kept).values[:, -1:]
        choice_TE = choice_TGe.masked_fill(weak_TG[..., None], -torch.inf).flatten(1)
    return choice_TE.topk(min(2 * site.top_k, site.num_experts)).indices
