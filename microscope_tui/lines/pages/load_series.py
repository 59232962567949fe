"""The sampled loads of one router as series, and which experts move together in them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from microscope_tui import measures
from microscope_tui.watch import Sample

LEAST_SAMPLES = 16
_MOST = 3


@dataclass(frozen=True, slots=True)
class Comoving:
    """The experts most and least correlated with one, each with its correlation."""

    alike: Sequence[tuple[int, float]]
    opposite: Sequence[tuple[int, float]]
    chance: float
    """Correlations below this are chance."""


class LoadSeries:
    """Loads and biases of all experts of one router over sampled steps."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        known = [(s, load) for s in samples if (load := measures.load(s.counts)) is not None]
        self.steps = [sample.step for sample, _ in known]
        self.loads = [load for _, load in known]
        """One list per step: multiples of the fair share."""
        self.biases = [sample.bias for sample, _ in known]

    def __len__(self) -> int:
        return len(self.steps)

    @cached_property
    def unit(self) -> Sequence[Sequence[float]]:
        """Every expert's series around zero and of length 1; empty for one that never moves."""
        return [_unit(values) for values in zip(*self.loads, strict=True)]

    def comoving(self, expert: int) -> Comoving | None:
        """At most three of each kind, strongest first; ``None`` with too few samples."""
        if len(self) < LEAST_SAMPLES or not 0 <= expert < len(self.loads[0]):
            return None
        own = self.unit[expert]
        found = [
            (other, sum(map(float.__mul__, own, values)))
            for other, values in enumerate(self.unit)
            if other != expert and values and own
        ]
        chance = 2 / math.sqrt(len(self))
        alike = sorted((f for f in found if f[1] >= chance), key=lambda f: -f[1])
        opposite = sorted((f for f in found if f[1] <= -chance), key=lambda f: f[1])
        return Comoving(alike[:_MOST], opposite[:_MOST], chance)


def _unit(values: Sequence[float]) -> Sequence[float]:
    mean = math.fsum(values) / len(values)
    away = [value - mean for value in values]
    length = math.sqrt(math.fsum(d * d for d in away))
    return [d / length for d in away] if length > 1e-9 else ()
