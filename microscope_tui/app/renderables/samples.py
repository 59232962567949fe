"""Sample lines of colours and characters, to judge a terminal by eye.

They contain escape sequences: print them to a terminal only.
"""

import io
from collections.abc import Sequence
from typing import Literal

from rich.color import Color
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from microscope_tui.app.renderables import ramps
from microscope_tui.app.renderables.palette import style_of
from microscope_tui.app.renderables.strips import to_strip
from microscope_tui.lines import Glyphs, Palette, Span, load_mark

_WIDTH = 48
_STEPS = 16
_LABEL = 12
_BRAILLE = "⠀⣀⡠⠔⠊⠉⠑⠢⢄⣀ ⡇⣿⢸"
_BLOCKS = "▁▂▃▄▅▆▇█ ▏▌▐"


def colour_samples(glyphs: Glyphs) -> list[str]:
    """A ramp in every number of colours, then the loads in each of them."""
    stops = ramps.TRUECOLOR[Palette.VIRIDIS]
    smooth = [
        Segment(" ", Style(bgcolor=Color.from_rgb(*ramps.between(stops, at / (_WIDTH - 1)))))
        for at in range(_WIDTH)
    ]
    loads = [
        "heat:dead",
        *(f"heat:{level}" for level in (*range(-16, -2), -1, 0, 1, *range(3, 17))),
    ]
    return [
        _line("truecolor", smooth, "truecolor") + "  smooth",
        _line("256", _ramp("256"), "256") + "  steps",
        _line("16", _ramp("standard"), "standard") + "  few steps",
        _line("loads", _cells(loads, "truecolor", glyphs), "truecolor"),
        _line("in 256", _cells(loads, "256", glyphs), "256"),
        _line("in 16", _cells(loads, "standard", glyphs), "standard"),
    ]


def glyph_samples(glyphs: Glyphs) -> list[str]:
    """The characters of curves, bars and marks; those that cannot be encoded are left out."""
    shown = [("ascii", "x # + - . | > *")]
    if glyphs is not Glyphs.ASCII:
        shown = [("blocks", _BLOCKS), ("marks", "× ▴ ▶ ● ╎")]
    if glyphs is Glyphs.BRAILLE:
        shown.insert(0, ("braille", f"{_BRAILLE}  dots, a curve that rises and falls"))
    return [f"{label:<{_LABEL}} {text}" for label, text in shown]


def _ramp(system: Literal["256", "standard"]) -> list[Segment]:
    return [
        Segment(" " * (_WIDTH // _STEPS), style_of(f"seq:{step}", system, Palette.VIRIDIS))
        for step in range(_STEPS)
    ]


def _cells(roles: Sequence[str], system: str, glyphs: Glyphs) -> list[Segment]:
    cells = []
    for role in roles:
        level = role.removeprefix("heat:")
        mark = load_mark(None if level == "dead" else int(level))
        cells.append(Span(f"{mark} ", role))
    return list(to_strip(cells, system, glyphs))


def _line(
    label: str, segments: list[Segment], system: Literal["truecolor", "256", "standard"]
) -> str:
    console = Console(file=io.StringIO(), color_system=system, force_terminal=True)
    return f"{label:<{_LABEL}} {Strip(segments).render(console)}"
