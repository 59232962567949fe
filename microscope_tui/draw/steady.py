"""Heat levels with hysteresis against noise.

A load keeps its level until it is beyond the edge by more than the measured noise. The loads that
keep a level are worked out once: comparing is cheaper than a logarithm.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import cache

from microscope_tui.draw.glyphs import FAIR_WITHIN, HOT_LEVEL, calm_band, is_calm, shade_level

HYSTERESIS = 0.125
"""Octaves beyond its edge to which a level is kept: half of a level."""
CALM_HYSTERESIS = 0.15
"""The same for the edges of the calm band, from inside."""
SHADE_HYSTERESIS = 0.03
"""The same, between the shades of the calm band."""
NOISE_HYSTERESIS = 3.0
"""The least of all, in standard deviations of the noise."""
MOST_HYSTERESIS = 0.5
"""Octaves: larger noise is shown."""
MOST_KEYS = 1024

_HOT = HOT_LEVEL / 4  # octaves
_NOISE_STEP = 1 / 16  # octaves; the loads that keep a level are worked out for each


class SteadyLevels:
    """The levels of many rows of loads, each with a memory of its own."""

    def __init__(self) -> None:
        self._shown: dict[Hashable, list[int | None]] = {}

    def levels(
        self, key: Hashable, loads: Sequence[float], per_cell: int = 1, noise: float = 0.0
    ) -> list[int | None]:
        """Those of ``shade_level``, held back by what ``key`` showed before; dead and hot at once.

        ``noise``: the standard deviation of the loads, in octaves.
        """
        place = (key, per_cell)
        held = min(MOST_HYSTERESIS, NOISE_HYSTERESIS * noise) if noise > 0 else 0.0
        kept = _kept(math.ceil(held / _NOISE_STEP) * _NOISE_STEP, per_cell)
        before = self._shown.pop(place, ())
        if len(before) != len(loads):
            levels = [shade_level(load, per_cell) for load in loads]
        else:
            levels = []
            for level, load in zip(before, loads, strict=True):
                low, high = kept[level]
                if not low <= load <= high:
                    level = _moved(level, load, per_cell, kept)
                levels.append(level)
        self._shown[place] = levels  # moved to the end: the least recently used is first
        if len(self._shown) > MOST_KEYS:
            del self._shown[next(iter(self._shown))]
        return levels


def _moved(
    old: int | None, load: float, per_cell: int, kept: Mapping[int | None, tuple[float, float]]
) -> int | None:
    """The level of a load that has left its own; the calm band is left later."""
    level = shade_level(load, per_cell)
    if level is not None and is_calm(old) and kept[-1][0] <= load <= kept[1][1]:
        return max(-1, min(1, level))
    return level


@cache
def _kept(held: float, per_cell: int) -> Mapping[int | None, tuple[float, float]]:
    """The loads that keep each level, with at least ``held`` octaves beyond every edge.

    No level below that of a hot expert is kept by a load that is hot.
    """
    calm_from, calm_to = calm_band(per_cell)
    outer, reach = max(CALM_HYSTERESIS, held), max(HYSTERESIS, held)
    inner = max(SHADE_HYSTERESIS, held)
    down, up = -FAIR_WITHIN, FAIR_WITHIN
    if per_cell > 1:  # one shade
        down, up, inner = calm_from, calm_to, outer
    # Of each level both ends, and how far beyond them it is kept.
    ends = {
        -1: (calm_from, down, outer, inner),
        0: (down, up, inner, inner),
        1: (up, calm_to, inner, outer),
    }
    for level in range(3, 17):
        low, high = (level - 0.5) / 4, (level + 0.5) / 4
        ends[level] = (max(low, calm_to), high, reach, reach)
        ends[-level] = (-high, min(-low, calm_from), reach, reach)
    found: dict[int | None, tuple[float, float]] = {None: (-math.inf, 0.0)}
    for level, (low, high, below, above) in ends.items():
        up_to = high + above
        if level < HOT_LEVEL:
            up_to = min(up_to, _HOT)
        found[level] = 2.0 ** (low - below), 2.0**up_to
    found[16] = found[16][0], math.inf
    found[-16] = math.ulp(0.0), found[-16][1]
    return found
