"""Colour ramps of the heatmap as tables, and how to look them up.

In truecolor a ramp is interpolated between stops. For 256 and 16 colours it has a few steps, each
the nearest terminal colour in CIE Lab that keeps the ramp ordered by lightness: rounding red, green
and blue separately would turn a calm band into stripes. Fewer steps also mean fewer repaints.
"""

from collections.abc import Sequence
from typing import TypeVar

from microscope_tui.lines import CALM_FROM, CALM_TO, HOT_LEVEL, Palette

RGB = tuple[int, int, int]
Stops = Sequence[tuple[float, str]]
_Entry = TypeVar("_Entry")

# log2(load) → colour: blue starves, three near greys are fair, amber to near white overloads.
DIVERGING_LOAD: Stops = (
    (-4.0, "#162e54"),
    (-1.6, "#224a7c"),
    (-0.75, "#242e3a"),
    (CALM_FROM, "#20262c"),
    (-0.25, "#20262c"),
    (0.0, "#282c31"),
    (0.25, "#303438"),
    (CALM_TO, "#303438"),
    (0.72, "#34302c"),
    (1.5, "#b27a2e"),
    (2.6, "#e96c3c"),
    (4.0, "#ffd6c4"),
)
# Upper limit of the level → colour.
DIVERGING_LOAD_256 = (
    *((-11, 17), (-4, 24), (-1, 234), (0, 235), (1, 236), (3, 237)),
    *((HOT_LEVEL - 1, 94), (8, 172), (12, 209), (14, 216), (16, 224)),
)
DIVERGING_LOAD_16 = ((-2, "blue"), (1, "black"), (HOT_LEVEL - 1, "yellow"), (16, "bright_red"))


def _evenly(*colours: str) -> Stops:
    return tuple((at / (len(colours) - 1), colour) for at, colour in enumerate(colours))


# Share of the way from low to high → colour. Viridis and cividis are Matplotlib's.
TRUECOLOR: dict[Palette, Stops] = {
    # The overloaded half of the loads, at distances that look alike.
    Palette.DIVERGING: (
        (0.0, "#282b30"),
        (0.42, "#b27a2e"),
        (0.64, "#e96c3c"),
        (1.0, "#ffd6c4"),
    ),
    Palette.VIRIDIS: _evenly(
        *("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c"),
        *("#28ae80", "#5ec962", "#addc30", "#fde725"),
    ),
    Palette.CIVIDIS: _evenly(
        *("#00224e", "#123570", "#3b496c", "#575d6d", "#707173"),
        *("#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"),
    ),
    Palette.GREY: _evenly("#333940", "#f0f3f7"),
}
# The fair share has its own step: the fourth of nine, the third of five.
INDEXED = {
    Palette.DIVERGING: (236, 94, 94, 130, 172, 209, 209, 216, 224),
    Palette.VIRIDIS: (53, 54, 25, 30, 36, 36, 41, 112, 184),
    Palette.CIVIDIS: (17, 18, 60, 243, 244, 101, 143, 185, 220),
    Palette.GREY: (236, 238, 240, 243, 246, 248, 250, 252, 254),
}
NAMED = {
    Palette.DIVERGING: ("black", "yellow", "yellow", "bright_red", "bright_white"),
    Palette.VIRIDIS: ("blue", "bright_blue", "cyan", "bright_green", "bright_yellow"),
    Palette.CIVIDIS: ("blue", "blue", "bright_black", "white", "bright_yellow"),
    Palette.GREY: ("black", "black", "bright_black", "white", "bright_white"),
}


def between(stops: Stops, where: float) -> RGB:
    """The colour at ``where``, in between two stops; beyond the ends the end."""
    below = stops[0]
    for stop in stops:
        if where <= stop[0]:
            share = (where - below[0]) / ((stop[0] - below[0]) or 1.0)
            red, green, blue = (
                round(a + share * (b - a))
                for a, b in zip(rgb_of(below[1]), rgb_of(stop[1]), strict=True)
            )
            return red, green, blue
        below = stop
    return rgb_of(stops[-1][1])


def up_to(table: Sequence[tuple[int, _Entry]], level: int) -> _Entry:
    """The first entry whose limit ``level`` does not exceed."""
    return next(entry for limit, entry in table if level <= limit)


def step_of(table: Sequence[_Entry], share: float) -> _Entry:
    """The entry at this share of the way; all entries have the same width."""
    return table[min(len(table) - 1, int(share * len(table)))]


def rgb_of(colour: str) -> RGB:
    """``#rrggbb`` as numbers."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
