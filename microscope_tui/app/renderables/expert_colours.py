"""Colours of the busiest experts in a text: seven that differ for all eyes, and one for any other.

A token is light ink on a dark ground; with one expert lit it is dark on the bright hue. The grounds
differ in hue and in lightness, so that people with any colour blindness tell them apart (the tests
measure it).
"""

from typing import NamedTuple

from rich.color import Color
from rich.style import Style

from microscope_tui.app.renderables.ramps import RGB


class _Colours(NamedTuple):
    """One expert: bright hue, dark ground and light ink, in truecolor and among the 256 colours."""

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
    _Colours("#d5d9e0", "#3f464f", "#f0f3f7", (253, 240, 255), "bright_white"),
)
"""The last one is for an expert that is none of the busiest."""
_NIGHT, _NIGHT_INDEX = "#0f1419", 233


def expert_style(
    family: str, number: int, color_system: str | None, named: dict[str, RGB]
) -> Style:
    """``token:N`` and ``also:N`` on the dark hue, ``lit:N`` on the bright one, ``ink:N`` in it."""
    if color_system is None:
        return Style(bold=family == "lit" or None, underline=family in ("lit", "also") or None)
    if color_system == "standard":
        return _sixteen(family, COLOURS[number].named, named)
    colours = COLOURS[number]
    if color_system == "256":
        hue, ground, ink = (Color.from_ansi(index) for index in colours.indexed)
        night = Color.from_ansi(_NIGHT_INDEX)
    else:
        hue, ground, ink, night = map(Color.parse, (*colours[:3], _NIGHT))
    if family == "lit":
        return Style(color=night, bgcolor=hue, bold=True)
    if family == "ink":
        return Style(color=hue, bgcolor=Color.parse(_NIGHT))
    return Style(color=ink, bgcolor=ground)


def _sixteen(family: str, name: str, named: dict[str, RGB]) -> Style:
    """Coloured ink: as grounds the sixteen colours would shout."""
    hue = Color.from_rgb(*named[name])
    black = Color.from_rgb(*named["black"])
    if family == "lit":
        return Style(color=black, bgcolor=hue)
    return Style(color=hue, bgcolor=black, underline=family == "also" or None)
