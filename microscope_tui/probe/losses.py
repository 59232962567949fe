"""The numbers of a step over micro-batches and ranks: losses and norms.

A model of transformers adds its auxiliary term to the loss it returns. The log has the two apart:
the cross-entropy, and the auxiliary term without its weight. What the trainer passes to ``step``
may be a DTensor of which this rank has a part, as the norm of ``clip_grad_norm_`` under FSDP2.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from microscope_tui.probe.find_routers import text_config
from microscope_tui.probe.sites import Site, setting

Name = tuple[str, ...]
"""Where a number is in a line of the log: ``("grad_norm",)``, ``("losses", "aux")``."""


class StepLosses:
    """Sums over micro-batches; on the device until the line is written."""

    def __init__(self, model: nn.Module, counting_ranks: int, across_ranks: bool) -> None:
        """Start a step without micro-batches.

        Args:
            model: Its auxiliary term is taken off the loss with the weight that its
                configuration has.
            counting_ranks: Ranks whose tokens are counted.
            across_ranks: If the model divides by the tokens of the step, these are the tokens of
                all ranks.
        """
        holders = model, getattr(model, "config", None), text_config(model)
        names = "router_aux_loss_coef", "aux_loss_coef"
        weight = setting(holders, names, lambda value: isinstance(value, int | float))
        self._weight = float(weight or 0.0)
        self._share = 1.0 / counting_ranks if across_ranks else 1.0
        self.reset()

    def reset(self) -> None:
        """Forget the micro-batches so far: a new step begins."""
        self._sums: list[Tensor] = []
        self._auxes: list[Tensor] = []
        self._divided = False

    def add(self, output: Any, divided: bool) -> None:
        """Take the loss from the output of one micro-batch; an output without one is ignored.

        ``divided``: the model divided the sum over its tokens by the tokens of the whole step,
        so that the losses of a step add up to their mean. Never waits for the device.
        """
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
    value = getattr(output, name, None)
    if isinstance(output, dict):
        value = output.get(name)
    return value if isinstance(value, Tensor) else None


@dataclass(frozen=True, slots=True)
class Share:
    """A rank's share of one number, for a sum over ranks.

    The mean of ``term`` over the ranks that have one is the number to the power of ``order``: 1, or
    the order of a norm.
    """

    term: Tensor
    """fp64, without dimensions."""
    group: int
    """Ranks whose shares make up one number; further ranks have copies of it."""
    order: float

    @property
    def place(self) -> tuple[int, float]:
        """Shares of one number have the same group and order on all ranks."""
        return self.group, self.order


class Shares:
    """The numbers of a step of which each rank has a share: their places in the sum over ranks.

    The ranks agree on them at the first logged step. A rank without a number adds zeros.
    """

    def __init__(self) -> None:
        self.own: dict[Name, Share] = {}
        """Of this rank in the current step."""
        self._places: dict[Name, tuple[int, float]] = {}
        """Of all ranks, see ``Share.place``."""
        self._ranks: Counter[Name] = Counter()
        """How many have a share of each."""

    @property
    def size(self) -> int:
        """Numbers in ``vector``."""
        return 2 * len(self._places)

    def take(self, name: Name, value: Any) -> Any:
        """``value`` for the line, as ``number_of`` reads it; ``None`` while it is summed."""
        found = number_of(value)
        if not isinstance(found, Share):
            return found
        self.own[name] = found
        return None

    def places(self) -> dict[Name, tuple[int, float]]:
        """Of this rank in this step; ``agree`` takes those of all ranks."""
        return {name: share.place for name, share in self.own.items()}

    def agree(self, everyone: Sequence[Mapping[Name, tuple[int, float]]]) -> None:
        """``everyone``: what ``places`` returned, by rank; the first rank that has one decides."""
        for places in reversed(everyone):
            self._places |= places
            self._ranks.update(places.keys())

    def strangers(self, own: Mapping[Name, Share]) -> list[Name]:
        """Numbers of a step that have no place in the sum."""
        return [name for name, share in own.items() if self._places.get(name) != share.place]

    def vector(self, own: Mapping[Name, Share], device: torch.device) -> Tensor:
        """For each number the share of this rank in a step and 1, or zeros; fp64."""
        slots = torch.zeros(self.size, dtype=torch.float64, device=device)
        for at, (name, place) in enumerate(self._places.items()):
            if name in own and own[name].place == place:
                slots[2 * at] = own[name].term.to(device)
                slots[2 * at + 1] = 1.0
        return slots

    def read(self, slots: Sequence[float]) -> dict[Name, float]:
        """The numbers, from the sum of ``vector`` over ranks.

        One is left out if its shares are not complete: of a group, and of all ranks that had one
        in the first logged step.
        """
        found = {}
        pairs = zip(slots[::2], slots[1::2], strict=True)
        for (name, (group, order)), (total, ranks) in zip(self._places.items(), pairs, strict=True):
            if ranks == self._ranks[name] and not ranks % group:
                found[name] = (total / ranks) ** (1.0 / order)
        return found


def number_of(value: Any) -> Any:
    """A scalar that a trainer passed: a number, a tensor without a graph, or this rank's ``Share``.

    ``ValueError``: it is not one number, or a DTensor whose parts do not add up to one.
    """
    if hasattr(value, "placements"):
        return _share_of(value)
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            raise ValueError(f"a tensor of shape {tuple(value.shape)}")
        return value.detach().reshape(()).to(torch.float64, copy=True)  # the trainer may change it
    if type(value) in (int, float):
        return value
    if isinstance(value, str | bool):
        raise ValueError(f"{value!r:.60}")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{value!r:.60}") from None


def _share_of(value: Any) -> Any:
    """Of a DTensor. A replicated one is its local tensor."""
    group = 1
    formulas = set()
    for size, placement in zip(value.device_mesh.shape, value.placements, strict=True):
        if placement.is_replicate():
            continue
        if not placement.is_partial():
            raise ValueError(f"a DTensor that is split ({placement})")
        group *= size
        # _NormPartial: its parts are norms, and reduce_op is how their powers are combined
        formulas.add((placement.reduce_op, getattr(placement, "norm_type", 1.0)))
    local = number_of(value.to_local())
    if not formulas:
        return local
    (kind, order), *others = formulas
    known = kind in ("sum", "avg") and isinstance(order, int | float)
    if others or not known or not 0 < order < math.inf:
        raise ValueError(f"a DTensor of parts that are not added up ({value.placements})")
    if order != 1.0:
        local = local.abs() ** order
    if kind == "sum":
        local = local * group
    return Share(local, group, float(order))


def grad_squares(sites: Sequence[Site]) -> Tensor:
    """This rank's share of the squared norm per site; NaN if a router has no gradient.

    Summed over all ranks it is the squared norm: a whole gradient is divided by the number of ranks
    that hold the router, a shard by the number of those that hold the same one.
    """
    shares = [_square(site) for site in sites]
    device = next((share.device for share in shares if share is not None), torch.device("cpu"))
    nothing = torch.tensor([0.0, torch.nan], dtype=torch.float64, device=device)
    found = []
    for site, share in zip(sites, shares, strict=True):
        if share is None:
            share = nothing[int(site.here)]
        found.append(share.to(device))
    return torch.stack(found)


def _square(site: Site) -> Tensor | None:
    squares: list[Tensor] = []
    for parameter in site.router.parameters() if site.router is not None else ():
        grad: Any = parameter.grad
        if grad is None or parameter.dim() < 2:
            continue
        copies = len(site.holders)
        if hasattr(grad, "to_local"):  # a DTensor
            for size, placement in zip(grad.device_mesh.shape, grad.placements, strict=True):
                if placement.is_shard():
                    copies //= size
            grad = grad.to_local()
        squares.append(grad.detach().float().square().sum(dtype=torch.float64) / copies)
    return sum(squares[1:], squares[0]) if squares else None
