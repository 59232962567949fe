"""Colours of the roles. Healthy is calm, sick is loud; colour only where it means something.

The load palette is diverging and safe for colour-blind eyes: blue starves, the ground is fair,
amber to near white overloads. It has three tables, because a terminal that snaps truecolor to
its own 256 or 16 colours turns the calm band into stripes.
"""

from functools import cache

from rich.color import Color
from rich.style import Style

GROUND = "#0f1419"
TEXT = "#d5d9e0"
DIM = "#7d8793"
FAINT = "#3a424d"
OK = "#7fb069"
WARN = "#e6b450"
CRITICAL = "#f0715f"
ACCENT = "#6cb6ff"
CURVE = "#9aa5b1"

# log2(load) → colour, interpolated in between.
_STOPS = (
    (-4.0, (0x16, 0x2E, 0x54)),
    (-1.6, (0x22, 0x4A, 0x7C)),
    (-0.75, (0x24, 0x2E, 0x3A)),
    (-0.7, (0x24, 0x2A, 0x32)),
    (0.65, (0x28, 0x2B, 0x30)),
    (0.72, (0x34, 0x30, 0x2C)),
    (1.5, (0xB2, 0x7A, 0x2E)),
    (2.6, (0xE9, 0x6C, 0x3C)),
    (4.0, (0xFF, 0xD6, 0xC4)),
)
# Direct indices of the xterm palette: upper limit of the level → index.
_INDEXED = (
    (-9, 17),
    (-6, 18),
    (-4, 24),
    (-1, 23),
    (0, 235),
    (3, 58),
    (5, 136),
    (8, 172),
    (11, 209),
    (16, 224),
)
_SIXTEEN = ((-4, "blue"), (-1, "blue"), (0, "black"), (5, "yellow"), (16, "bright_red"))

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
}
_ON_GROUND = Style(bgcolor=GROUND)


@cache
def style_of(role: str, color_system: str | None = "truecolor") -> Style:
    """The style of a role (see ``report.spans``) on a terminal of this colour system."""
    if role.startswith("heat:"):
        return _heat(role.removeprefix("heat:"), color_system)
    return _ON_GROUND + _ROLES[role]


def _heat(level: str, color_system: str | None) -> Style:
    if level == "dead":
        if color_system in ("truecolor", "256"):
            ground = "#162e54" if color_system == "truecolor" else "color(17)"
            return Style(
                color="#6f97cc" if color_system == "truecolor" else "color(68)", bgcolor=ground
            )
        return Style(color="bright_white", bgcolor="blue")
    number = int(level)
    if color_system == "truecolor":
        return Style(color=GROUND, bgcolor=Color.from_rgb(*_interpolated(number / 4)))
    if color_system == "256":
        return Style(color="color(233)", bgcolor=f"color({_stepped(_INDEXED, number)})")
    return Style(color="black", bgcolor=str(_stepped(_SIXTEEN, number)))


def _stepped(table: tuple[tuple[int, int | str], ...], level: int) -> int | str:
    return next(colour for limit, colour in table if level <= limit)


def _interpolated(octaves: float) -> tuple[float, float, float]:
    below = _STOPS[0]
    for stop in _STOPS:
        if octaves <= stop[0]:
            share = (octaves - below[0]) / ((stop[0] - below[0]) or 1.0)
            red, green, blue = (
                round(a + share * (b - a)) for a, b in zip(below[1], stop[1], strict=True)
            )
            return red, green, blue
        below = stop
    return _STOPS[-1][1]
