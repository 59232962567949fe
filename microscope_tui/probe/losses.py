"""The loss of a step from the model's own outputs, over micro-batches and ranks.

A model of transformers adds its auxiliary term to the loss it returns. The log wants the two apart:
the cross-entropy, and the auxiliary term without its weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_WEIGHTS = ("router_aux_loss_coef", "aux_loss_coef")


class StepLosses:
    """Sums over the micro-batches of a step; on the device until the line is written."""

    def __init__(self, model: nn.Module, counting_ranks: int, across_ranks: bool) -> None:
        """
        Args:
            counting_ranks: Ranks whose tokens are counted.
            across_ranks: Where the model divides by the tokens of the step, these are those of
                all ranks.
        """
        self._weight = _aux_weight(model)
        self._share = 1.0 / counting_ranks if across_ranks else 1.0
        self.reset()

    def reset(self) -> None:
        """Forget the step."""
        self._sums: list[Tensor] = []
        self._auxes: list[Tensor] = []
        self._divided = False

    def add(self, output: Any, divided: bool) -> None:
        """Take the losses of one output, if it has any."""
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


def _aux_weight(model: nn.Module) -> float:
    for holder in (model, getattr(model, "config", None)):
        for name in _WEIGHTS:
            value = getattr(holder, name, None)
            if isinstance(value, int | float):
                return float(value)
    return 0.0


def _part(output: Any, name: str) -> Tensor | None:
    value = output.get(name) if isinstance(output, dict) else getattr(output, name, None)
    return value if isinstance(value, Tensor) else None
