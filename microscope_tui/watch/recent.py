"""The mean load over the last steps, and its noise from step to step.

A single step of a balanced router is half noise: the mean shows the experts.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from microscope_tui import measures
from microscope_tui.runlog import StepEntry
from microscope_tui.watch.run_watch import RunWatch
from microscope_tui.watch.scan import MEAN_OF
from microscope_tui.watch.view import LayerView

_ENOUGH = 512  # differences of two steps needed to estimate the noise
_OCTAVES = 1 / math.log(2)


@dataclass(frozen=True, slots=True)
class RecentLoad:
    """One router over the last steps."""

    load: Sequence[float] | None
    """Multiples of the fair share; 0 only for an expert that no token chose in all the steps."""
    noise: float
    """Standard deviation of these means, in octaves."""


def recent_entries(entries: Iterable[StepEntry]) -> Sequence[StepEntry]:
    """The last ``MEAN_OF`` entries, newest last, without gaps."""
    kept: list[StepEntry] = []
    for entry in entries:
        step = entry.record.step
        kept = [e for e in kept if step - MEAN_OF < e.record.step < step]
        kept.append(entry)
    return kept


def recent_load(entries: Sequence[StepEntry], router: int) -> RecentLoad:
    """The mean of ``entries`` for one router; steps without its counts are left out."""
    rows = [row for entry in entries if (row := entry.matrices().tokens_per_expert[router])]
    rows = [row for row in rows if len(row) == len(rows[-1])]
    if not rows:
        return RecentLoad(None, 0.0)
    total = [sum(column) for column in zip(*rows, strict=True)] if len(rows) > 1 else rows[0]
    return RecentLoad(measures.load(total), _noise(rows, total))


def _noise(rows: Sequence[Sequence[int]], total: Sequence[int]) -> float:
    """Noise from the differences of neighbours: a drifting mean is not noise."""
    pairs = list(pairwise(rows))[-max(1, _ENOUGH // len(total)) :]
    if not pairs:
        return 0.0
    squares, count = 0.0, 0
    for before, after in pairs:
        for a, b in zip(before, after, strict=True):
            if mean := (a + b) / 2:
                squares += min(1.0, ((a - b) / mean) ** 2)  # one that dies is not noise
                count += 1
    return math.sqrt(squares / max(1, count) / 2 / len(rows)) * _OCTAVES


@dataclass(frozen=True, slots=True)
class Recent:
    """The last steps of a run, or none to show a single step."""

    entries: Sequence[StepEntry] = ()

    @property
    def steps(self) -> int:
        """Number of steps in the mean."""
        return len(self.entries)

    def of(self, layer: LayerView) -> tuple[LayerView, float]:
        """``layer`` with its mean load and noise; unchanged without a mean."""
        if self.steps < 2 or layer.load is None:
            return layer, 0.0
        recent = recent_load(self.entries, layer.index)
        if recent.load is None or len(recent.load) != len(layer.load):
            return layer, 0.0
        return replace(layer, load=recent.load), recent.noise


def recent_of(watch: RunWatch) -> Recent:
    """The last steps of ``watch`` up to the one whose counts are shown."""
    with watch.lock:
        shown, entries = watch.shown.with_counts, tuple(watch.shown.recent)
    if shown is None or not entries or entries[-1] is not shown:
        return Recent()
    return Recent(recent_entries(entries))
