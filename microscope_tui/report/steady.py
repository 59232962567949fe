"""Levels of heat that stay where they are while a load only trembles.

A load keeps its level until it is clearly beyond the edge of it: then noise repaints nothing, and
no cell is ever wrong by more than the hysteresis. The edges are tables of loads, worked out once:
comparing with them is cheaper than a logarithm.
"""

import math
from bisect import bisect_left
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

HYSTERESIS = 0.125
"""Octaves beyond its edge to which a level is kept: half of a level."""
CALM_HYSTERESIS = 0.15
"""The same for the calm band."""
MOST_KEYS = 1024

_CALM_FROM, _CALM_TO = -0.7, 0.65  # octaves
_TOP = 16  # quarter octaves
_FINE, _COARSE = 1, 4  # quarter octaves a level


@dataclass(frozen=True, slots=True)
class _Scale:
    """One division of the loads. Entry 0 is the dead expert, then from starving to hot."""

    levels: tuple[int | None, ...]
    highest: list[float]
    """The highest load of every entry but the last."""
    least: list[float]
    most: list[float]
    """From where to where a load is kept at an entry that it was at before."""


class SteadyLevels:
    """The levels of many rows of loads, each with a memory of its own."""

    def __init__(self) -> None:
        self._shown: dict[Hashable, tuple[bool, list[int]]] = {}

    def levels(
        self, key: Hashable, loads: Sequence[float], coarse: bool = False
    ) -> list[int | None]:
        """Loads as ``glyphs.load_level`` has them, held back by what ``key`` showed before.

        Held is what has the same key, place and number of loads. ``coarse`` has one level an
        octave beside the calm band. A dead expert is dead at once, and alive at once.
        """
        scale = _SCALES[coarse]
        highest, least, most = scale.highest, scale.least, scale.most
        before = self._shown.pop(key, None)
        if before is None or before[0] != coarse or len(before[1]) != len(loads):
            entries = [bisect_left(highest, load) for load in loads]
        else:
            entries = [
                entry if least[entry] <= load <= most[entry] else bisect_left(highest, load)
                for entry, load in zip(before[1], loads, strict=True)
            ]
        self._shown[key] = coarse, entries  # behind all others: the longest not asked for is first
        if len(self._shown) > MOST_KEYS:
            del self._shown[next(iter(self._shown))]
        levels = scale.levels
        return [levels[entry] for entry in entries]


def _scale(step: int) -> _Scale:
    """The scale of ``step`` quarter octaves a level."""
    above = list(range(step, _TOP + 1, step))
    while (above[0] + step / 2) / 4 <= _CALM_TO:  # it lies within the calm band
        above.pop(0)
    levels = [*(-level for level in reversed(above)), 0, *above]
    between = [(low + high) / 8 for low, high in pairwise(above)]
    edges = [*(-edge for edge in reversed(between)), _CALM_FROM, _CALM_TO, *between]  # octaves
    reach = [HYSTERESIS if level else CALM_HYSTERESIS for level in levels]
    highest = [2.0**edge for edge in edges]
    calm = levels.index(0)
    highest[calm - 1] = math.nextafter(highest[calm - 1], 0.0)  # both its ends are in the band
    return _Scale(
        levels=(None, *levels),
        highest=[0.0, *highest],
        least=[
            0.0,
            math.ulp(0.0),
            *(2.0 ** (e - r) for e, r in zip(edges, reach[1:], strict=True)),
        ],
        most=[0.0, *(2.0 ** (e + r) for e, r in zip(edges, reach[:-1], strict=True)), math.inf],
    )


_SCALES = {False: _scale(_FINE), True: _scale(_COARSE)}
