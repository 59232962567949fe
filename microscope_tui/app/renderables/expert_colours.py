"""Colours of the busiest experts in a text: seven that differ for all eyes, and one for any other.

The hues are those of Okabe and Ito (2008), which people with colour blindness tell apart. A token
is light ink on a dark ground of its hue; in the light of one expert it is dark on the bright hue.
"""

from rich.color import Color
from rich.style import Style

from microscope_tui.app.renderables import ramps
from microscope_tui.app.renderables.ramps import RGB

HUES = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#d55e00", "#4a6fe3", "#d5d9e0")
"""The last one is for an expert that is none of the busiest."""
_INDEXED = (
    *((74, 24, 153), (214, 94, 223), (36, 23, 115), (175, 96, 225)),
    *((227, 58, 229), (166, 88, 216), (69, 18, 147), (253, 240, 255)),
)
"""The hue, its dark ground, and its light ink among the 256 colours."""
_NAMED = ("cyan", "yellow", "green", "magenta", "bright_yellow", "bright_red", "bright_blue", "")
_GROUND: RGB = (0x0F, 0x14, 0x19)
_WHITE: RGB = (0xFF, 0xFF, 0xFF)
_DARK_SHARE, _LIGHT_SHARE = 0.36, 0.45


def expert_style(
    family: str, number: int, color_system: str | None, named: dict[str, RGB]
) -> Style:
    """``token:N`` and ``also:N`` on the dark hue, ``lit:N`` on the bright one, ``ink:N`` in it."""
    if color_system is None:
        return Style(bold=family == "lit" or None, underline=family in ("lit", "also") or None)
    if color_system == "standard":
        return _sixteen(family, _NAMED[number], named)
    if color_system == "256":
        hue, dark, light = (Color.from_ansi(index) for index in _INDEXED[number])
        ground, night = Color.from_ansi(233), Color.from_ansi(233)
    else:
        bright = ramps.rgb_of(HUES[number])
        hue, night = Color.from_rgb(*bright), Color.from_rgb(*_GROUND)
        dark = Color.from_rgb(*_mixed(bright, _GROUND, _DARK_SHARE))
        light = Color.from_rgb(*_mixed(_WHITE, bright, _LIGHT_SHARE))
        ground = night
    if family == "lit":
        return Style(color=night, bgcolor=hue, bold=True)
    if family == "ink":
        return Style(color=hue, bgcolor=ground)
    return Style(color=light, bgcolor=dark)


def _sixteen(family: str, name: str, named: dict[str, RGB]) -> Style:
    """Coloured ink: as grounds the sixteen colours would shout."""
    hue = Color.from_rgb(*named[name or "bright_white"])
    black = Color.from_rgb(*named["black"])
    if family == "lit":
        return Style(color=black, bgcolor=hue)
    return Style(color=hue, bgcolor=black, underline=family == "also" or None)


def _mixed(one: RGB, other: RGB, share: float) -> RGB:
    """``share`` of ``one``, the rest of ``other``."""
    red, green, blue = (round(share * a + (1 - share) * b) for a, b in zip(one, other, strict=True))
    return red, green, blue
