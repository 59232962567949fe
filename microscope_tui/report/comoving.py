"""Which experts move together: the correlation of their loads over sampled steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from microscope_tui import measures
from microscope_tui.watch.expert_history import Sample

LEAST_SAMPLES = 16
_MOST = 3


@dataclass(frozen=True, slots=True)
class Comoving:
    """The experts most alike and most opposite to one, each with its correlation."""

    alike: Sequence[tuple[int, float]]
    opposite: Sequence[tuple[int, float]]
    samples: int
    chance: float
    """Correlations below this are what chance gives."""


def comoving(samples: Sequence[Sample], expert: int) -> Comoving | None:
    """At most three of either kind, the strongest first; ``None`` with too few samples."""
    loads = [load for sample in samples if (load := measures.load(sample.counts))]
    if len(loads) < LEAST_SAMPLES or not 0 <= expert < len(loads[0]):
        return None
    series = [_centred(values) for values in zip(*loads, strict=True)]
    own = series[expert]
    found = [
        (other, sum(a * b for a, b in zip(own, values, strict=True)))
        for other, values in enumerate(series)
        if other != expert and values and own
    ]
    chance = 2 / math.sqrt(len(loads))
    alike = sorted((f for f in found if f[1] >= chance), key=lambda f: -f[1])
    opposite = sorted((f for f in found if f[1] <= -chance), key=lambda f: f[1])
    return Comoving(alike[:_MOST], opposite[:_MOST], len(loads), chance)


def _centred(values: Sequence[float]) -> Sequence[float]:
    """Around zero and of length 1; empty for a load that never moves."""
    mean = math.fsum(values) / len(values)
    away = [value - mean for value in values]
    length = math.sqrt(math.fsum(d * d for d in away))
    return [d / length for d in away] if length > 1e-9 else ()
