"""Colours of the roles. Healthy is calm, trouble stands out; colour only where it has a meaning.

One table of styles per kind of terminal: truecolor, 256 colours, 16 colours, and none, which uses
reverse video and underlines. Nothing important depends on colour alone.
"""

from functools import cache

from rich.color import Color
from rich.style import Style

from microscope_tui.app.renderables import ramps
from microscope_tui.app.renderables.expert_colours import expert_style
from microscope_tui.app.renderables.ramps import RGB
from microscope_tui.lines import Palette, is_calm

GROUND = "#0f1419"
TEXT = "#d5d9e0"
DIM = "#7d8793"
FAINT = "#3a424d"
OK = "#7fb069"
WARN = "#e6b450"
CRITICAL = "#f0715f"
ACCENT = "#6cb6ff"
CURVE = "#9aa5b1"

_ROLES = {
    "": Style(color=TEXT),
    "value": Style(color=TEXT),
    "title": Style(color="#f0f3f7", bold=True),
    "brand": Style(color=ACCENT, bold=True),
    "dim": Style(color=DIM),
    "faint": Style(color=FAINT),
    "curve": Style(color=CURVE),
    "ok": Style(color=OK),
    "warn": Style(color=WARN),
    "crit": Style(color=CRITICAL),
    "accent": Style(color=ACCENT),
    "badge-warn": Style(color=GROUND, bgcolor=WARN, bold=True),
    "badge-crit": Style(color=GROUND, bgcolor=CRITICAL, bold=True),
    "cursor": Style(color=GROUND, bgcolor=ACCENT),
}
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
# Ink and ground. Bright black is too dark for words, and blue is for starving experts.
_ROLES_16 = {
    "": ("bright_white", "black"),
    "value": ("bright_white", "black"),
    "title": ("bright_white", "black"),
    "brand": ("bright_cyan", "black"),
    "dim": ("white", "black"),
    "faint": ("bright_black", "black"),
    "curve": ("white", "black"),
    "ok": ("green", "black"),
    "warn": ("bright_yellow", "black"),
    "crit": ("bright_red", "black"),
    "accent": ("bright_cyan", "black"),
    "badge-warn": ("black", "bright_yellow"),
    "badge-crit": ("black", "bright_red"),
    "cursor": ("black", "bright_cyan"),
}
_EXPERTS = ("token", "also", "lit", "ink")
_INK = {
    "": Style(),
    "standard": Style(color=Color.from_rgb(*_SIXTEEN["bright_white"])),
    "256": Style(color="color(253)"),
    "truecolor": Style(color=TEXT),
}
"""Of a number on a dark cell."""
_REVERSED = ("badge-warn", "badge-crit", "cursor")
_FAIR = 0.4
"""Position of the fair share on a ramp from dark to light: below the middle, to be calm."""
_MOST_LOAD, _MOST = 16, 15
_DARK_BELOW = 0.16
"""Luminance of a cell on which light ink is as easy to read as dark ink."""


@cache
def style_of(
    role: str, color_system: str | None = "truecolor", palette: Palette = Palette.DIVERGING
) -> Style:
    """The style of a role (see ``lines.spans``) on a terminal of this colour system.

    ``heat:N`` is a load of N quarter octaves (−16 … 16, −1 to 1 are calm), ``heat:dead`` none at
    all, ``num:N`` the same for a number, with light ink. ``seq:N`` is a step from low to high
    (0 … 15) of a measure that has no fair value.
    ``token:N``, ``also:N``, ``lit:N`` and ``ink:N`` are the experts of a text (0 … 7).
    """
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
        return expert_style(family, int(level), color_system, _SIXTEEN)
    return _word(role, color_system)


def _word(role: str, color_system: str | None) -> Style:
    style = _ROLES[role]
    if color_system is None:
        reverse = role in _REVERSED
        bold = style.bold or role == "crit"
        return Style(bold=bold or None, reverse=reverse or None)
    if color_system == "standard":
        ink, ground = _ROLES_16[role]
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
        colour = ramps.between(ramps.DIVERGING_LOAD, level / 4)
        return Style(color=GROUND, bgcolor=Color.from_rgb(*colour))
    if color_system == "256":
        index = ramps.up_to(ramps.DIVERGING_LOAD_256, level)
        return Style(color="color(233)", bgcolor=f"color({index})")
    if is_calm(level):  # a pattern, see ``strips``: themes redefine bright black
        return Style(color=_sixteen("white"), bgcolor=_sixteen("black"))
    name = ramps.up_to(ramps.DIVERGING_LOAD_16, level)
    return Style(color=_sixteen("black"), bgcolor=_sixteen(name))


def _dead(color_system: str | None, palette: Palette) -> Style:
    """Always with a ×: next to blue for starving experts the background alone is not distinct."""
    if color_system is None:
        return Style(underline=True)
    diverging = palette is Palette.DIVERGING
    if color_system == "truecolor":
        ink, ground = ("#6f97cc", "#162e54") if diverging else (CURVE, GROUND)
        return Style(color=ink, bgcolor=ground)
    if color_system == "256":
        ink, ground = ("color(68)", "color(17)") if diverging else ("color(246)", "color(16)")
        return Style(color=ink, bgcolor=ground)
    ground = "blue" if palette in (Palette.DIVERGING, Palette.GREY) else "black"
    return Style(color=_sixteen("bright_white"), bgcolor=_sixteen(ground))


def _sequence(share: float, color_system: str | None, palette: Palette) -> Style:
    """A share of the way from low to high, with readable ink."""
    if color_system is None:
        return Style(reverse=share > 0.5 or None)
    if color_system == "truecolor":
        colour = ramps.between(ramps.TRUECOLOR[palette], share)
        return Style(color=TEXT if _is_dark(colour) else GROUND, bgcolor=Color.from_rgb(*colour))
    if color_system == "256":
        ground = Color.from_ansi(ramps.step_of(ramps.INDEXED[palette], share))
        dark = _is_dark(ground.get_truecolor())
        return Style(color="color(253)" if dark else "color(233)", bgcolor=ground)
    name = ramps.step_of(ramps.NAMED[palette], share)
    dark = _is_dark(_SIXTEEN[name])
    return Style(color=_sixteen("bright_white" if dark else "black"), bgcolor=_sixteen(name))


def _is_dark(colour: RGB) -> bool:
    red, green, blue = ((value / 255) ** 2.2 for value in colour)
    luminance: float = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return luminance < _DARK_BELOW


def _sixteen(name: str) -> Color:
    return Color.from_rgb(*_SIXTEEN[name])
