"""What every single token chose: the choices of one forward pass, kept until they are written.

The hooks of ``watching.py`` hand it what they have read already. Padding is left out, so that the
rows of every router are the real tokens of the batch in their order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from microscope_tui.probe.counter import Scored


class Traced(NamedTuple):
    """The choices of one router for T real tokens, on the device of the router."""

    ids_TK: Tensor
    """Chosen experts, int64, the largest weight first; −1 is a slot that chose no real expert."""
    weights_TK: Tensor
    """What their outputs are multiplied with, fp32; NaN where it is not known."""
    margin_T: Tensor
    """Selection score of the last chosen less that of the best one left out, fp32; NaN where it
    is not known."""
    entropy_T: Tensor
    """Of the router's probabilities over all experts, in nats, fp32; NaN where not known."""


class Tracer:
    """Collects the calls of all routers in one forward pass of the model."""

    def __init__(self) -> None:
        self._calls: dict[tuple[int, int], list[Traced]] = {}

    def add(
        self,
        key: tuple[int, int],
        num_experts: int,
        slots_TK: Tensor,
        weights_TK: Tensor | None,
        scored: Scored | None,
    ) -> None:
        """Keep one call.

        Args:
            key: Place of the site, and number of the pass through it.
            slots_TK: Of ``Tally.add``: expert, ``num_experts`` for no expert, more for padding.
            weights_TK: None where they are not known; the order of the choice is kept then.
            scored: Of ``Tally.add_scores``, for the one call.
        """
        real_T = slots_TK[:, 0] <= num_experts
        slots_TK = slots_TK[real_T]
        ids_TK = slots_TK.where(slots_TK < num_experts, slots_TK.new_full((), -1))
        unknown_TK = torch.full_like(ids_TK, torch.nan, dtype=torch.float32)
        if weights_TK is None:
            weights_TK, size_TK = unknown_TK, unknown_TK.nan_to_num()
        else:
            weights_TK = weights_TK.detach().reshape(real_T.shape[0], -1)[real_T].float()
            size_TK = weights_TK.nan_to_num(nan=-torch.inf)
        # Stable, so that ties stay in the order of the choice; empty slots come last.
        size_TK = size_TK.masked_fill(ids_TK < 0, -torch.inf)
        order_TK = size_TK.argsort(dim=-1, descending=True, stable=True)
        entropy_1T, margin_1T = (None, None) if scored is None else scored
        self._calls.setdefault(key, []).append(
            Traced(
                ids_TK.gather(1, order_TK),
                weights_TK.gather(1, order_TK),
                unknown_TK[:, 0] if margin_1T is None else margin_1T[0, real_T],
                unknown_TK[:, 0] if entropy_1T is None else entropy_1T[0, real_T],
            )
        )

    def take(self) -> dict[tuple[int, int], Traced]:
        """The choices since the last call, by place and pass; a router may take a batch in
        pieces."""
        calls, self._calls = self._calls, {}
        return {
            key: Traced(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))
            for key, pieces in calls.items()
        }
