"""Colours of the roles, for a dark ground; ``light`` has those for a light one.

Healthy is calm, trouble is bright. For truecolor, 256 colours, 16 colours, and none, which uses
reverse video and underlines. Nothing important depends on colour alone.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple, TypeVar

import msgspec
from rich._palettes import STANDARD_PALETTE
from rich.color import ANSI_COLOR_NAMES, Color
from rich.style import Style

from microscope_tui.draw.glyphs import CALM_FROM, CALM_TO, HOT_LEVEL, is_calm
from microscope_tui.draw.heat import Palette

Stops = Sequence[tuple[float, str]]
_Entry = TypeVar("_Entry")


class Colours(NamedTuple):
    """Of one expert in a text: hue, and ground with ink; the same among 256 colours.

    Grounds differ in hue and in lightness, for any colour blindness (the tests measure it).
    """

    hue: str
    """For text on the ground of the screen."""
    ground: str
    """Of a highlighted token."""
    ink: str
    """On that ground."""
    indexed: tuple[int, int, int]
    """The three among 256 colours."""
    named: str
    """The hue among 16 colours."""


class Hue(NamedTuple):
    """In truecolor, among 16, and among 256, where Rich finds it if not given."""

    true: str
    named: str
    indexed: str = ""


class Shades(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """The colours of a theme; it equals only itself, as the key of cached styles."""

    ground: Hue
    words: Mapping[str, Hue]
    """The ink of a role; badges and the cursor have it as their ground."""
    surface: str
    panel: str
    """Grounds of what Textual draws by itself (the command palette)."""
    on_dark: Hue
    on_light: Hue
    load: Stops
    """log2(load) → colour."""
    load_256: Sequence[tuple[int, int]]
    """Upper limit of the level → colour."""
    load_16: Sequence[tuple[int, str]]
    dead: Mapping[Palette, tuple[Hue, Hue]]
    """Ink and ground of a cell without tokens."""
    experts: Sequence[Colours]

    def word(self, role: str) -> str:
        """The ink of a role as ``#rrggbb``."""
        return self.words[role].true


_EXPERTS = ("token", "also", "lit", "ink")
_SAME = {"brand": "accent", "cursor": "accent", "badge-warn": "warn", "badge-crit": "crit"}
_BOLD = ("title", "brand", "badge-warn", "badge-crit")
_FAIR = 0.4
"""Position of the fair share on a ramp from dark to light: below the middle, to be calm."""
_MOST_LOAD = 16
_DARK_BELOW = 0.16
"""Luminance of a cell on which light ink is as easy to read as dark ink."""
_CIVIDIS = (
    *((0 / 9, "#00224e"), (1 / 9, "#123570"), (2 / 9, "#3b496c"), (3 / 9, "#575d6d")),
    *((4 / 9, "#707173"), (5 / 9, "#8a8678"), (6 / 9, "#a59c74"), (7 / 9, "#c3b369")),
    *((8 / 9, "#e1cc55"), (9 / 9, "#fee838")),
)
"""Matplotlib's: share of the way from low to high → colour."""
_CIVIDIS_256 = (17, 18, 60, 243, 244, 101, 143, 185, 220)
_CIVIDIS_16 = ("blue", "blue", "bright_black", "white", "bright_yellow")
"""The fair share has its own step: the fourth of nine, the third of five."""
_OCTAVES = (-4.0, -1.6, -0.75, CALM_FROM, -0.25, 0.0, 0.25, CALM_TO, 0.72, 1.5, 2.6, 4.0)


def by_octaves(*colours: str) -> Stops:
    """Stops for the log2 of a load: twelve colours, from starving to hot."""
    return tuple(zip(_OCTAVES, colours, strict=True))


_GROUND = Hue("#0f1419", "black")
_NO_TOKEN = Hue("#9aa5b1", "bright_white", "color(246)")
_BLACK = Hue("#0f1419", "black", "color(16)")

DARK = Shades(
    ground=_GROUND,
    # Bright black is too dark for words, and blue is for starving experts. Rich would pick a
    # yellow of 256 that some people confuse with coral.
    words={
        "value": Hue("#d5d9e0", "bright_white"),
        "title": Hue("#f0f3f7", "bright_white"),
        "dim": Hue("#7d8793", "white"),
        "faint": Hue("#3a424d", "bright_black"),
        "curve": Hue("#9aa5b1", "white"),
        "ok": Hue("#7fb069", "green"),
        "warn": Hue("#e6b450", "bright_yellow", "color(221)"),
        "crit": Hue("#f0715f", "bright_red"),
        "accent": Hue("#6cb6ff", "bright_cyan"),
    },
    surface="#151b22",
    panel="#1b2430",
    on_dark=Hue("#d5d9e0", "bright_white", "color(253)"),
    on_light=Hue("#0f1419", "black", "color(233)"),
    # Blue starves, three near greys are fair, amber to near white overloads.
    load=by_octaves(
        *("#1f4a80", "#224a7c", "#242e3a", "#20262c", "#20262c", "#282c31"),
        *("#303438", "#303438", "#34302c", "#b27a2e", "#e96c3c", "#ffd6c4"),
    ),
    load_256=(
        *((-4, 24), (-1, 234), (0, 235), (1, 236), (3, 237)),
        *((HOT_LEVEL - 1, 94), (8, 172), (12, 209), (14, 216), (16, 224)),
    ),
    load_16=((-2, "bright_blue"), (1, "black"), (HOT_LEVEL - 1, "yellow"), (16, "bright_red")),
    dead={
        Palette.DIVERGING: (
            Hue("#6f97cc", "bright_white", "color(68)"),
            Hue("#0a0f5a", "blue", "color(17)"),
        ),
        Palette.CIVIDIS: (_NO_TOKEN, _BLACK),
    },
    experts=(
        Colours("#4cc9f0", "#1c3c48", "#b7e9f9", (81, 24, 195), "cyan"),
        Colours("#f0a000", "#5c4410", "#f9d999", (214, 130, 231), "bright_yellow"),
        Colours("#00b070", "#086244", "#99dfc6", (35, 28, 231), "green"),
        Colours("#e070c0", "#804673", "#f3c6e6", (169, 89, 225), "bright_magenta"),
        Colours("#f4ee60", "#6f7037", "#fbf8bf", (227, 58, 230), "bright_green"),
        Colours("#e0563c", "#411e1b", "#ecb0a6", (167, 52, 217), "bright_red"),
        Colours("#8f84ff", "#443e9e", "#d3cfff", (105, 55, 189), "bright_cyan"),
    ),
)


@cache
def style_of(
    role: str,
    color_system: str | None = "truecolor",
    palette: Palette = Palette.DIVERGING,
    shades: Shades = DARK,
) -> Style:
    """The style of a role (see ``lines.spans``) on a terminal of this colour system.

    ``num:N`` is ``heat:N`` (−16 … 16) for a number. ``A|B``: the colour of A above that of B.
    """
    if "|" in role:
        upper, lower = (style_of(half, color_system, palette, shades) for half in role.split("|"))
        return Style(color=upper.bgcolor, bgcolor=lower.bgcolor)
    family, _, level = role.partition(":")
    if family in ("heat", "num"):
        return _heat(level, color_system, palette, shades)
    if family in _EXPERTS:
        return _expert(family, int(level), color_system, shades)
    return _word(role, color_system, shades)


def _word(role: str, color_system: str | None, shades: Shades) -> Style:
    name = _SAME.get(role, role or "value")
    on_ground = role == "cursor" or role.startswith("badge-")
    bold = role in _BOLD
    if color_system is None:
        return Style(bold=bold or role == "crit" or None, reverse=on_ground or None)
    ink = _colour(shades.words[name], color_system)
    screen = _colour(shades.ground, color_system)
    if on_ground:
        return Style(color=screen, bgcolor=ink, bold=bold or None)
    return Style(color=ink, bgcolor=screen, bold=bold or None)


def _heat(text: str, color_system: str | None, palette: Palette, shades: Shades) -> Style:
    dead = text == "dead"
    level = -_MOST_LOAD if dead else int(text)
    if color_system is None:
        return Style(reverse=level > 1 or None, underline=level < -1 or None)
    if dead:
        ink, ground = (_colour(hue, color_system) for hue in shades.dead[palette])
        return Style(color=ink, bgcolor=ground)
    if palette is not Palette.DIVERGING:
        room = _FAIR if level < 0 else 1.0 - _FAIR
        return _sequence(_FAIR + room * level / _MOST_LOAD, color_system, shades)
    if color_system == "truecolor":
        return _cell(_between(shades.load, level / 4), color_system, shades)
    if color_system == "256":
        return _cell(Color.from_ansi(_up_to(shades.load_256, level)), color_system, shades)
    if is_calm(level):  # a pattern, see ``strips``: themes redefine bright black
        ink = _colour(shades.words["curve"], color_system)
        return Style(color=ink, bgcolor=_colour(shades.ground, color_system))
    return _cell(_sixteen(_up_to(shades.load_16, level)), color_system, shades)


def _cell(ground: Color, color_system: str, shades: Shades) -> Style:
    ink = shades.on_dark if _is_dark(ground) else shades.on_light
    return Style(color=_colour(ink, color_system), bgcolor=ground)


def _sequence(share: float, color_system: str, shades: Shades) -> Style:
    if color_system == "truecolor":
        ground = _between(_CIVIDIS, share)
    elif color_system == "256":
        ground = Color.from_ansi(_step_of(_CIVIDIS_256, share))
    else:
        ground = _sixteen(_step_of(_CIVIDIS_16, share))
    return _cell(ground, color_system, shades)


def _is_dark(colour: Color) -> bool:
    red, green, blue = ((value / 255) ** 2.2 for value in colour.get_truecolor())
    luminance: float = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return luminance < _DARK_BELOW


def _colour(hue: Hue, color_system: str) -> Color:
    if color_system == "standard":
        return _sixteen(hue.named)
    if color_system == "256" and hue.indexed:
        return Color.parse(hue.indexed)
    return Color.parse(hue.true)


def _sixteen(name: str) -> Color:
    """In truecolor: a name would become what Textual's theme has for it, another one of the 16."""
    return Color.from_rgb(*STANDARD_PALETTE[ANSI_COLOR_NAMES[name]])


def _expert(family: str, number: int, color_system: str | None, shades: Shades) -> Style:
    """``token:N`` and ``also:N`` on the calm hue, ``lit:N`` on the strong one, ``ink:N`` in it."""
    colours = shades.experts[number]
    if color_system is None:
        return Style(bold=family == "lit" or None, underline=family in ("lit", "also") or None)
    screen = _colour(shades.ground, color_system)
    if color_system == "standard":  # coloured ink: as grounds the sixteen colours would shout
        hue = _sixteen(colours.named)
        if family == "lit":
            return Style(color=screen, bgcolor=hue)
        return Style(color=hue, bgcolor=screen, underline=family == "also" or None)
    if color_system == "256":
        hue, ground, ink = (Color.from_ansi(index) for index in colours.indexed)
    else:
        hue, ground, ink = map(Color.parse, colours[:3])
    if family == "lit":
        return Style(color=screen, bgcolor=hue, bold=True)
    if family == "ink":
        return Style(color=hue, bgcolor=screen)
    return Style(color=ink, bgcolor=ground)


def _between(stops: Stops, where: float) -> Color:
    below = stops[0]
    for stop in stops:
        if where <= stop[0]:
            share = (where - below[0]) / ((stop[0] - below[0]) or 1.0)
            ends = (Color.parse(colour).get_truecolor() for _, colour in (below, stop))
            return Color.from_rgb(*(round(a + share * (b - a)) for a, b in zip(*ends, strict=True)))
        below = stop
    return Color.parse(below[1])


def _up_to(table: Sequence[tuple[int, _Entry]], level: int) -> _Entry:
    return next(entry for limit, entry in table if level <= limit)


def _step_of(table: Sequence[_Entry], share: float) -> _Entry:
    """The entry at this share of the way; all entries have the same width."""
    return table[min(len(table) - 1, int(share * len(table)))]
