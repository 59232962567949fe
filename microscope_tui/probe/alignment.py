"""Whether all ranks add the same step to a sum.

Sums pair by their order. A rank that misses one ``probe.step`` adds each later step to the sum of
the step before, and its own counter cannot show that: so every rank sends, beside the number of its
step, how many steps the optimizer of its first router has made. The rank that is ahead then takes
part in the sums that it has missed, with nothing.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from microscope_tui.probe.sites import Site

_WIDTH = 3
"""Numbers that each rank sends: its step, steps of its optimizer (-1: not known), and how sure it
is: ``THERE``, or ``STEADY``."""
THERE = 1
STEADY = 2
"""A rank takes part; its optimizer has also made one step for each of the trainer's before."""


class OptimizerSteps:
    """Steps of the optimizer that has a weight of the first router here, since ``attach``."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self._made = -1
        self._steady = 0
        self._unsteady = 0
        """Intervals between logged steps in which it made as many steps, and others."""
        self._last = (0, 0)
        self._router = next((site.router for site in sites if site.router is not None), None)
        self._handle = register_optimizer_step_post_hook(self._stepped)

    def _stepped(self, optimizer: Any, *_: Any) -> None:
        own = {*self._router.parameters()} if self._router is not None else set()
        groups = getattr(optimizer, "param_groups", ())
        if any(not own.isdisjoint(group.get("params", ())) for group in groups):
            self._made = max(0, self._made) + 1

    def sent(self, step: int, numbered: bool) -> tuple[int, int, int]:
        """What this rank sends with a logged step; ``numbered``: by the trainer, which is right.

        An optimizer that makes two steps for each of the trainer's shows nothing.
        """
        made = self._made
        if self._last[0] not in (0, step):
            is_steady = step - self._last[0] == made - self._last[1]
            self._steady += is_steady
            self._unsteady += not is_steady
        self._last = (step, made)
        if numbered or (self._unsteady > 1 and not self._steady):
            made = -1
        return step, made, STEADY if self._steady else THERE

    def forget(self) -> None:
        """Remove the hook from the optimizer."""
        self._handle.remove()


def place_of(rank: int, size: int, sent: tuple[int, int, int], device: torch.device) -> Tensor:
    """What this rank sends with a step, for a sum that has the numbers of all ranks.

    Zeros: it takes part without a step. A single process sends nothing.
    """
    if size == 1:
        return torch.zeros(0, dtype=torch.float64, device=device)
    place = torch.zeros(size, _WIDTH, dtype=torch.float64, device=device)
    place[rank] = torch.tensor(sent, dtype=torch.float64)
    return place.flatten()


class Alignment(NamedTuple):
    """How the steps of the ranks in one sum differ."""

    lacking: list[int]
    """Ranks that took part without a step."""
    steps: dict[int, int]
    """The step of every other rank, by its optimizer."""
    corrections: dict[int, int]
    """What has to be added to the counters of ranks that missed calls."""

    def ahead(self, rank: int) -> int:
        """How many steps ``rank`` is ahead of the rank that is last; 0 for one that did not
        count.
        """
        first = min(self.steps.values(), default=0)
        return self.steps.get(rank, first) - first

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
    steps = {rank: int(step) for rank, (step, _, there) in enumerate(rows) if there}
    made = {rank: int(rows[rank][1]) for rank in steps}
    offsets = {rank: made[rank] - step for rank, step in steps.items() if made[rank] >= 0}
    # Most ranks call once a step. Of equally many, those are right that have begun together.
    often = Counter(offsets.values())
    usual = max(often, key=lambda offset: (often[offset], -abs(offset + begin)), default=0)
    corrections = {}
    for rank, offset in offsets.items():
        missed = offset - max(usual, -begin)
        if missed > 0:  # fewer steps of the optimizer are skipped ones, as in fp16
            steps[rank] += missed
            if rows[rank][2] == STEADY:
                corrections[rank] = missed
    lacking = [rank for rank in range(len(rows)) if rank not in steps]
    return Alignment(lacking, steps, corrections)
