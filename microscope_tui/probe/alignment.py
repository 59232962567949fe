"""Whether all ranks add the same step to a sum.

Sums pair by their order. A rank that misses one ``probe.step`` adds each later step to the sum of
the step before, and its own counter cannot show that: so every rank sends, beside the number of its
step, how many steps the optimizer of its first router has made. The rank that is ahead then takes
part in the sums that it has missed, with nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from microscope_tui.probe.sites import Site

_WIDTH = 3
"""Numbers that each rank sends: its step, steps of its optimizer (-1: none), and 1."""


class OptimizerSteps:
    """Steps of the optimizer that has a weight of the first router here, since ``attach``."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self.made = -1
        """-1 if no such optimizer has made a step."""
        self._router = next((site.router for site in sites if site.router is not None), None)
        self._handle = register_optimizer_step_post_hook(self._stepped)

    def _stepped(self, optimizer: Any, *_: Any) -> None:
        own = [] if self._router is None else [*map(id, self._router.parameters())]
        groups = getattr(optimizer, "param_groups", ())
        if any(id(weight) in own for group in groups for weight in group["params"]):
            self.made = max(0, self.made) + 1

    def forget(self) -> None:
        """Count no more."""
        self._handle.remove()


def place_of(rank: int, size: int, step: int, made: int, device: torch.device) -> Tensor:
    """What this rank sends with a step, for a sum that has the numbers of all ranks.

    Zeros: it takes part without a step. A single process sends nothing.
    """
    if size == 1:
        return torch.zeros(0, dtype=torch.float64, device=device)
    sent = torch.zeros(size, _WIDTH, dtype=torch.float64, device=device)
    sent[rank] = torch.tensor([step, made, 1.0], dtype=torch.float64)
    return sent.flatten()


class Alignment(NamedTuple):
    """How the steps of the ranks in one sum differ."""

    lacking: list[int]
    """Ranks that took part without a step."""
    steps: dict[int, int]
    """The step of every other rank, by its optimizer."""
    corrections: dict[int, int]
    """What has to be added to the counters of ranks that missed a call, or made one too many."""

    @property
    def mixes(self) -> bool:
        """Whether the sum is of different steps."""
        return len({*self.steps.values()}) > 1

    def ahead(self, rank: int) -> int:
        """Steps that ``rank`` is ahead of the last one."""
        return self.steps[rank] - min(self.steps.values()) if rank in self.steps else 0

    def text(self) -> str:
        """What the line lacks; empty if nothing."""
        first = min(self.steps.values(), default=0)
        parts = [f"rank {rank} did not count" for rank in self.lacking[:8]]
        others = [(rank, step) for rank, step in self.steps.items() if step != first]
        parts += [f"rank {rank} counted step {step}" for rank, step in others[:8]]
        return ", ".join(parts)


def alignment_of(numbers: Sequence[float], begin: int) -> Alignment:
    """From the sum of ``place_of``; ``begin``: the step before the first one of all ranks."""
    rows = [numbers[at : at + _WIDTH] for at in range(0, len(numbers), _WIDTH)]
    steps: dict[int, int] = {}
    offsets: dict[int, int] = {}
    for rank, (step, made, is_there) in enumerate(rows):
        if is_there:
            steps[rank] = int(step)
            if made >= 0:
                offsets[rank] = int(made - step)
    # Most ranks call once a step. Of equally many, those are right that have begun together.
    often = Counter(offsets.values())
    usual = max(often, key=lambda offset: (often[offset], -abs(offset + begin)), default=0)
    corrections = {r: offset - usual for r, offset in offsets.items() if offset != usual}
    for rank, missed in corrections.items():
        steps[rank] += missed
    lacking = [rank for rank in range(len(rows)) if rank not in steps]
    return Alignment(lacking, steps, corrections)
