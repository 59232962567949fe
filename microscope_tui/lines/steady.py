"""Heat levels with hysteresis against noise.

A load keeps its level until it is beyond the edge by more than the measured noise: noise repaints
nothing, and no cell is wrong by more than the hysteresis. The edges are precomputed tables of
loads: comparing is cheaper than a logarithm.
"""

import math
from bisect import bisect_left
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from microscope_tui.lines.glyphs import CALM_FROM, CALM_TO, FAIR_WITHIN, is_calm

HYSTERESIS = 0.125
"""Octaves beyond its edge to which a level is kept: half of a level."""
CALM_HYSTERESIS = 0.15
"""The same for the edges of the calm band, from inside."""
SHADE_HYSTERESIS = 0.03
"""The same, between the shades of the calm band."""
NOISE_HYSTERESIS = 3.0
"""The minimum of all of them, in standard deviations of the noise."""
MOST_HYSTERESIS = 0.5
"""Octaves: larger noise is shown."""
MOST_KEYS = 1024

_NOISE_STEP = 1 / 16  # octaves; a scale is worked out for each
_BEYOND = range(3, 17)  # quarter octaves of the levels beyond the calm band


@dataclass(frozen=True, slots=True)
class _Scale:
    """The division of the loads. Entry 0 is the dead expert, then from starving to hot."""

    levels: tuple[int | None, ...]
    highest: list[float]
    """The highest load of every entry but the last."""
    least: list[float]
    most: list[float]
    """Range of loads that keep an entry."""
    calm: range
    """The entries of the calm band: between them a load moves without leaving it."""

    def moved(self, entry: int, load: float) -> int:
        """The entry of a load, without hysteresis."""
        true, calm = bisect_left(self.highest, load), self.calm
        if entry in calm and self.least[calm[0]] <= load <= self.most[calm[-1]]:
            return min(max(true, calm[0]), calm[-1])
        return true


class SteadyLevels:
    """The levels of many rows of loads, each with a memory of its own."""

    def __init__(self) -> None:
        self._shown: dict[Hashable, list[int]] = {}

    def levels(self, key: Hashable, loads: Sequence[float], noise: float = 0.0) -> list[int | None]:
        """Loads as ``glyphs.shade_level`` has them, held back by what ``key`` showed before.

        Held is what has the same key, place and number of loads. A dead expert is dead at once, and
        alive at once. ``noise`` is the standard deviation of the loads, in octaves.
        """
        scale = _scale(held_by(noise))
        highest, least, most = scale.highest, scale.least, scale.most
        before = self._shown.pop(key, None)
        if before is None or len(before) != len(loads):
            entries = [bisect_left(highest, load) for load in loads]
        else:
            entries = [
                entry if least[entry] <= load <= most[entry] else scale.moved(entry, load)
                for entry, load in zip(before, loads, strict=True)
            ]
        self._shown[key] = entries  # moved to the end: the least recently used is first
        if len(self._shown) > MOST_KEYS:
            del self._shown[next(iter(self._shown))]
        levels = scale.levels
        return [levels[entry] for entry in entries]


def held_by(noise: float) -> float:
    """Octaves of hysteresis against so much noise, in steps; 0 for none but the usual one."""
    wanted = min(MOST_HYSTERESIS, NOISE_HYSTERESIS * noise) if noise > 0 else 0.0
    return math.ceil(wanted / _NOISE_STEP) * _NOISE_STEP


@cache
def _scale(held: float) -> _Scale:
    """The scale with at least ``held`` octaves of hysteresis at every edge."""
    levels = [*(-level for level in reversed(_BEYOND)), -1, 0, 1, *_BEYOND]
    between = [(low + high) / 8 for low, high in pairwise(_BEYOND)]
    calm = [CALM_FROM, -FAIR_WITHIN, FAIR_WITHIN, CALM_TO]
    edges = [*(-edge for edge in reversed(between)), *calm, *between]
    highest = [2.0**edge for edge in edges]
    for lowest in (-1, 0):  # both ends are in: of the band, and of the fair share in it
        at = levels.index(lowest) - 1
        highest[at] = math.nextafter(highest[at], 0.0)
    least, most = [0.0, math.ulp(0.0)], [0.0]
    for edge, (low, high) in zip(edges, pairwise(levels), strict=True):
        least.append(2.0 ** (edge - max(_kept(high, low), held)))
        most.append(2.0 ** (edge + max(_kept(low, high), held)))
    band = range(levels.index(-1) + 1, levels.index(1) + 2)
    return _Scale((None, *levels), [0.0, *highest], least, [*most, math.inf], band)


def _kept(level: int, beyond: int) -> float:
    """Octaves to which a level is kept beyond the edge of its neighbour."""
    if not is_calm(level):
        return HYSTERESIS
    return SHADE_HYSTERESIS if is_calm(beyond) else CALM_HYSTERESIS
