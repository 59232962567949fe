"""The norm of the gradient of every router's weight, whole or in shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from microscope_tui.probe.ranks import Ranks
from microscope_tui.probe.sites import Site


def grad_squares(sites: Sequence[Site], ranks: Ranks) -> Tensor:
    """This rank's share of the squared norm per site; NaN where a router has no gradient.

    Summed over all ranks it is the squared norm: what every rank holds whole is divided by their
    number, what is sharded by the number of ranks that hold the same shard.
    """
    shares = [_square(site.router, ranks) for site in sites]
    device = next((share.device for share in shares if share is not None), torch.device("cpu"))
    nothing = torch.full((), float("nan"), dtype=torch.float64, device=device)
    return torch.stack([nothing if share is None else share.to(device) for share in shares])


def _square(router: nn.Module | None, ranks: Ranks) -> Tensor | None:
    total: Tensor | None = None
    for parameter in router.parameters() if router is not None else ():
        grad: Any = parameter.grad
        if grad is None or parameter.dim() < 2:
            continue
        copies = ranks.size
        if hasattr(grad, "to_local"):  # a DTensor
            for size, placement in zip(grad.device_mesh.shape, grad.placements, strict=True):
                copies //= size if placement.is_shard() else 1
            grad = grad.to_local()
        square = grad.detach().float().square().sum(dtype=torch.float64) / copies
        total = square if total is None else total + square
    return total
