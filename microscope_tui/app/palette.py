"""Colours of the roles. Healthy is calm, trouble is bright; colour only where it has a meaning.

One table of styles per kind of terminal: truecolor, 256 colours, 16 colours, and none, which uses
reverse video and underlines. Nothing important depends on colour alone.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple, TypeVar

from rich.color import Color
from rich.style import Style

from microscope_tui.lines import CALM_FROM, CALM_TO, HOT_LEVEL, Palette, is_calm

RGB = tuple[int, int, int]
_Stops = Sequence[tuple[float, str]]
_Entry = TypeVar("_Entry")

GROUND = "#0f1419"
TEXT = "#d5d9e0"
DIM = "#7d8793"
FAINT = "#3a424d"
OK = "#7fb069"
WARN = "#e6b450"
CRITICAL = "#f0715f"
ACCENT = "#6cb6ff"
CURVE = "#9aa5b1"

# Rich would pick a yellow that some people confuse with coral.
_ROLES_256 = {
    "warn": Style(color="color(221)"),
    "badge-warn": Style(color=GROUND, bgcolor="color(221)", bold=True),
}

# The 16 colours are written as what Rich knows them by: a name would become the colour that
# Textual's theme has for it, and then another one of the 16.
_SIXTEEN: dict[str, RGB] = {
    "black": (0, 0, 0),
    "green": (0, 170, 0),
    "yellow": (170, 85, 0),
    "blue": (0, 0, 170),
    "cyan": (0, 170, 170),
    "white": (170, 170, 170),
    "bright_black": (85, 85, 85),
    "bright_red": (255, 85, 85),
    "bright_green": (85, 255, 85),
    "bright_yellow": (255, 255, 85),
    "bright_blue": (85, 85, 255),
    "bright_magenta": (255, 85, 255),
    "bright_cyan": (85, 255, 255),
    "bright_white": (255, 255, 255),
}
# The style, and ink and ground among the sixteen colours, of which bright black is too dark for
# words, and blue is for starving experts.
_ROLES = {
    "": (Style(color=TEXT), "bright_white", "black"),
    "value": (Style(color=TEXT), "bright_white", "black"),
    "title": (Style(color="#f0f3f7", bold=True), "bright_white", "black"),
    "brand": (Style(color=ACCENT, bold=True), "bright_cyan", "black"),
    "dim": (Style(color=DIM), "white", "black"),
    "faint": (Style(color=FAINT), "bright_black", "black"),
    "curve": (Style(color=CURVE), "white", "black"),
    "ok": (Style(color=OK), "green", "black"),
    "warn": (Style(color=WARN), "bright_yellow", "black"),
    "crit": (Style(color=CRITICAL), "bright_red", "black"),
    "accent": (Style(color=ACCENT), "bright_cyan", "black"),
    "badge-warn": (Style(color=GROUND, bgcolor=WARN, bold=True), "black", "bright_yellow"),
    "badge-crit": (Style(color=GROUND, bgcolor=CRITICAL, bold=True), "black", "bright_red"),
    "cursor": (Style(color=GROUND, bgcolor=ACCENT), "black", "bright_cyan"),
}
_EXPERTS = ("token", "also", "lit", "ink")
_INK = {
    "": Style(),
    "standard": Style(color=Color.from_rgb(*_SIXTEEN["bright_white"])),
    "256": Style(color="color(253)"),
    "truecolor": Style(color=TEXT),
}
"""Of a number on a dark cell."""
_FAIR = 0.4
"""Position of the fair share on a ramp from dark to light: below the middle, to be calm."""
_MOST_LOAD, _MOST = 16, 15
_DARK_BELOW = 0.16
"""Luminance of a cell on which light ink is as easy to read as dark ink."""

# log2(load) → colour: blue starves, three near greys are fair, amber to near white overloads.
_DIVERGING_LOAD: _Stops = (
    (-4.0, "#1f4a80"),
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
_DIVERGING_LOAD_256 = (
    *((-4, 24), (-1, 234), (0, 235), (1, 236), (3, 237)),
    *((HOT_LEVEL - 1, 94), (8, 172), (12, 209), (14, 216), (16, 224)),
)
_DIVERGING_LOAD_16 = (
    (-2, "bright_blue"),
    (1, "black"),
    (HOT_LEVEL - 1, "yellow"),
    (16, "bright_red"),
)


def _evenly(*colours: str) -> _Stops:
    return tuple((at / (len(colours) - 1), colour) for at, colour in enumerate(colours))


# Share of the way from low to high → colour. Viridis and cividis are Matplotlib's.
_TRUECOLOR: dict[Palette, _Stops] = {
    # The overloaded half of the loads, at distances that look alike.
    Palette.DIVERGING: ((0.0, "#282b30"), (0.42, "#b27a2e"), (0.64, "#e96c3c"), (1.0, "#ffd6c4")),
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
_INDEXED = {
    Palette.DIVERGING: (236, 94, 94, 130, 172, 209, 209, 216, 224),
    Palette.VIRIDIS: (53, 54, 25, 30, 36, 36, 41, 112, 184),
    Palette.CIVIDIS: (17, 18, 60, 243, 244, 101, 143, 185, 220),
    Palette.GREY: (236, 238, 240, 243, 246, 248, 250, 252, 254),
}
_NAMED = {
    Palette.DIVERGING: ("black", "yellow", "yellow", "bright_red", "bright_white"),
    Palette.VIRIDIS: ("blue", "bright_blue", "cyan", "bright_green", "bright_yellow"),
    Palette.CIVIDIS: ("blue", "blue", "bright_black", "white", "bright_yellow"),
    Palette.GREY: ("black", "black", "bright_black", "white", "bright_white"),
}


class _Colours(NamedTuple):
    """Of one expert in a text: bright hue, dark ground, light ink; the same among 256 colours.

    The grounds differ in hue and in lightness, so that people with any colour blindness can
    distinguish them (the tests measure it).
    """

    hue: str
    ground: str
    ink: str
    indexed: tuple[int, int, int]
    named: str
    """Its ink among the sixteen colours."""


COLOURS = (
    _Colours("#4cc9f0", "#1c3c48", "#b7e9f9", (81, 24, 195), "cyan"),
    _Colours("#f0a000", "#5c4410", "#f9d999", (214, 130, 231), "bright_yellow"),
    _Colours("#00b070", "#086244", "#99dfc6", (35, 28, 231), "green"),
    _Colours("#e070c0", "#804673", "#f3c6e6", (169, 89, 225), "bright_magenta"),
    _Colours("#f4ee60", "#6f7037", "#fbf8bf", (227, 58, 230), "bright_green"),
    _Colours("#e0563c", "#411e1b", "#ecb0a6", (167, 52, 217), "bright_red"),
    _Colours("#8f84ff", "#443e9e", "#d3cfff", (105, 55, 189), "bright_cyan"),
)


@cache
def style_of(
    role: str, color_system: str | None = "truecolor", palette: Palette = Palette.DIVERGING
) -> Style:
    """The style of a role (see ``lines.spans``) on a terminal of this colour system.

    ``heat:N`` is a load of N quarter octaves (−16 … 16, −1 to 1 are calm), ``heat:dead`` none at
    all, ``num:N`` the same for a number, with light ink. ``seq:N`` is a step from low to high
    (0 … 15) of a measure that has no fair value.
    ``token:N``, ``also:N``, ``lit:N`` and ``ink:N`` are the experts of a text (0 … 6).
    ``A|B`` is a cell in two halves: the colour of A above that of B.
    """
    if "|" in role:
        upper, lower = (style_of(half, color_system, palette).bgcolor for half in role.split("|"))
        return Style(color=upper, bgcolor=lower)
    family, _, level = role.partition(":")
    if family in ("heat", "num"):
        if level == "dead":
            return _dead(color_system, palette)
        style = _heat(int(level), color_system, palette)
        inked = family == "num" and palette is Palette.DIVERGING
        return style + _INK[color_system or ""] if inked else style
    if family == "seq":
        return _sequence(int(level) / _MOST, color_system, palette)
    if family in _EXPERTS:
        return _expert(family, int(level), color_system)
    return _word(role, color_system)


def _word(role: str, color_system: str | None) -> Style:
    style, ink, ground = _ROLES[role]
    if color_system is None:
        bold = style.bold or role == "crit"
        return Style(bold=bold or None, reverse=style.bgcolor is not None or None)
    if color_system == "standard":
        return Style(color=_sixteen(ink), bgcolor=_sixteen(ground), bold=style.bold)
    if color_system == "256":
        style = _ROLES_256.get(role, style)
    return Style(bgcolor=GROUND) + style


def _heat(level: int, color_system: str | None, palette: Palette) -> Style:
    if color_system is None:
        return Style(reverse=level > 1 or None, underline=level < -1 or None)
    if palette is not Palette.DIVERGING:
        room = _FAIR if level < 0 else 1.0 - _FAIR
        return _sequence(_FAIR + room * level / _MOST_LOAD, color_system, palette)
    if color_system == "truecolor":
        colour = _between(_DIVERGING_LOAD, level / 4)
        return Style(color=GROUND, bgcolor=Color.from_rgb(*colour))
    if color_system == "256":
        index = _up_to(_DIVERGING_LOAD_256, level)
        return Style(color="color(233)", bgcolor=f"color({index})")
    if is_calm(level):  # a pattern, see ``strips``: themes redefine bright black
        return Style(color=_sixteen("white"), bgcolor=_sixteen("black"))
    name = _up_to(_DIVERGING_LOAD_16, level)
    return Style(color=_sixteen("black"), bgcolor=_sixteen(name))


def _dead(color_system: str | None, palette: Palette) -> Style:
    """The colour of no load; a × on it means that no expert of the cell has a token."""
    if color_system is None:
        return Style(underline=True)
    diverging = palette is Palette.DIVERGING
    if color_system == "truecolor":
        ink, ground = ("#6f97cc", "#0a0f5a") if diverging else (CURVE, GROUND)
        return Style(color=ink, bgcolor=ground)
    if color_system == "256":
        ink, ground = ("color(68)", "color(17)") if diverging else ("color(246)", "color(16)")
        return Style(color=ink, bgcolor=ground)
    ground = "blue" if palette in (Palette.DIVERGING, Palette.GREY) else "black"
    return Style(color=_sixteen("bright_white"), bgcolor=_sixteen(ground))


def _sequence(share: float, color_system: str | None, palette: Palette) -> Style:
    if color_system is None:
        return Style(reverse=share > 0.5 or None)
    if color_system == "truecolor":
        colour = _between(_TRUECOLOR[palette], share)
        return Style(color=TEXT if _is_dark(colour) else GROUND, bgcolor=Color.from_rgb(*colour))
    if color_system == "256":
        ground = Color.from_ansi(_step_of(_INDEXED[palette], share))
        dark = _is_dark(ground.get_truecolor())
        return Style(color="color(253)" if dark else "color(233)", bgcolor=ground)
    name = _step_of(_NAMED[palette], share)
    dark = _is_dark(_SIXTEEN[name])
    return Style(color=_sixteen("bright_white" if dark else "black"), bgcolor=_sixteen(name))


def _is_dark(colour: RGB) -> bool:
    red, green, blue = ((value / 255) ** 2.2 for value in colour)
    luminance: float = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return luminance < _DARK_BELOW


def _sixteen(name: str) -> Color:
    return Color.from_rgb(*_SIXTEEN[name])


def _expert(family: str, number: int, color_system: str | None) -> Style:
    """``token:N`` and ``also:N`` on the dark hue, ``lit:N`` on the bright one, ``ink:N`` in it."""
    colours = COLOURS[number]
    if color_system is None:
        return Style(bold=family == "lit" or None, underline=family in ("lit", "also") or None)
    if color_system == "standard":  # coloured ink: as grounds the sixteen colours would shout
        hue, black = _sixteen(colours.named), _sixteen("black")
        if family == "lit":
            return Style(color=black, bgcolor=hue)
        return Style(color=hue, bgcolor=black, underline=family == "also" or None)
    if color_system == "256":
        hue, ground, ink = (Color.from_ansi(index) for index in colours.indexed)
        night = Color.from_ansi(233)
    else:
        hue, ground, ink, night = map(Color.parse, (*colours[:3], GROUND))
    if family == "lit":
        return Style(color=night, bgcolor=hue, bold=True)
    if family == "ink":
        return Style(color=hue, bgcolor=GROUND)
    return Style(color=ink, bgcolor=ground)


def _between(stops: _Stops, where: float) -> RGB:
    """The colour at ``where``, in between two stops; beyond the ends the end."""
    below = stops[0]
    for stop in stops:
        if where <= stop[0]:
            share = (where - below[0]) / ((stop[0] - below[0]) or 1.0)
            ends = (Color.parse(colour).get_truecolor() for _, colour in (below, stop))
            red, green, blue = (round(a + share * (b - a)) for a, b in zip(*ends, strict=True))
            return red, green, blue
        below = stop
    return Color.parse(below[1]).get_truecolor()


def _up_to(table: Sequence[tuple[int, _Entry]], level: int) -> _Entry:
    """The first entry whose limit ``level`` does not exceed."""
    return next(entry for limit, entry in table if level <= limit)


def _step_of(table: Sequence[_Entry], share: float) -> _Entry:
    """The entry at this share of the way; all entries have the same width."""
    return table[min(len(table) - 1, int(share * len(table)))]
