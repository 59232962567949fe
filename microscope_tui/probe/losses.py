"""The loss of a step from the model's own outputs, over micro-batches and ranks.

A model of transformers adds its auxiliary term to the loss it returns. The log has the two apart:
the cross-entropy, and the auxiliary term without its weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from microscope_tui.probe.find_routers import text_config
from microscope_tui.probe.sites import Site, setting


class StepLosses:
    """Sums over micro-batches; on the device until the line is written."""

    def __init__(self, model: nn.Module, counting_ranks: int, across_ranks: bool) -> None:
        """``across_ranks``: where the model divides by the tokens of a step, by those of all ranks,
        of which ``counting_ranks`` count."""
        holders = model, getattr(model, "config", None), text_config(model)
        names = "router_aux_loss_coef", "aux_loss_coef"
        weight = setting(holders, names, lambda value: isinstance(value, int | float))
        self._weight = float(weight or 0.0)
        self._share = 1.0 / counting_ranks if across_ranks else 1.0
        self.reset()

    def reset(self) -> None:
        self._sums: list[Tensor] = []
        self._auxes: list[Tensor] = []
        self._divided = False

    def add(self, output: Any, divided: bool) -> None:
        loss, aux = _part(output, "loss"), _part(output, "aux_loss")
        if loss is None:
            return
        with torch.no_grad():
            loss = loss.detach().double().mean()
            if aux is not None:
                aux = aux.detach().double().mean().to(loss.device)
                self._auxes.append(aux)
                loss = loss - self._weight * aux
            self._sums.append(loss)
        self._divided = divided

    def read(self, device: torch.device) -> Tensor:
        """``(sum of losses, their number, sum of auxiliary terms, their number)``."""
        totals = torch.zeros(4, dtype=torch.float64, device=device)
        if self._sums:
            totals[0] = torch.stack([loss.to(device) for loss in self._sums]).sum()
            # Parts of one mean, or a mean each.
            totals[1] = self._share if self._divided else len(self._sums)
        if self._auxes:
            totals[2] = torch.stack([aux.to(device) for aux in self._auxes]).sum()
            totals[3] = len(self._auxes)
        return totals


def _part(output: Any, name: str) -> Tensor | None:
    value = output.get(name) if isinstance(output, dict) else getattr(output, name, None)
    return value if isinstance(value, Tensor) else None


def grad_squares(sites: Sequence[Site]) -> Tensor:
    """This rank's share of the squared norm per site; NaN if a router has no gradient.

    Summed over all ranks it is the squared norm: a whole gradient is divided by the number of ranks
    that hold the router, a shard by the number of those that hold the same one.
    """
    shares = [_square(site) for site in sites]
    device = next((share.device for share in shares if share is not None), torch.device("cpu"))
    nothing = torch.tensor([0.0, torch.nan], dtype=torch.float64, device=device)
    return torch.stack([
        nothing[int(site.here)] if share is None else share.to(device)
        for site, share in zip(sites, shares, strict=True)
    ])  # fmt: skip


def _square(site: Site) -> Tensor | None:
    total: Tensor | None = None
    for parameter in site.router.parameters() if site.router is not None else ():
        grad: Any = parameter.grad
        if grad is None or parameter.dim() < 2:
            continue
        copies = len(site.holders)
        if hasattr(grad, "to_local"):  # a DTensor
            for size, placement in zip(grad.device_mesh.shape, grad.placements, strict=True):
                copies //= size if placement.is_shard() else 1
            grad = grad.to_local()
        square = grad.detach().float().square().sum(dtype=torch.float64) / copies
        total = square if total is None else total + square
    return total
