"""Turns spans into strips, Textual's representation of a line."""

from collections.abc import Iterable
from functools import cache

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from microscope_tui.app.renderables.palette import style_of
from microscope_tui.lines import Glyphs, Line, Palette, Span, spelled, width_of

CALM_MARKS = {"heat:-1": "·", "heat:0": "·", "heat:1": "░"}
"""Fill of calm cells in 16 colours, where greys are unreliable."""


@cache
def _ground_of(style: Style) -> Style:
    return Style(bgcolor=style.bgcolor)


def to_strip(
    line: Iterable[Span],
    color_system: str | None,
    glyphs: Glyphs,
    palette: Palette = Palette.DIVERGING,
    *,
    plain_cells: bool = False,
) -> Strip:
    """One line as a strip. Neighbours of one style are merged: every segment costs bytes.

    ``plain_cells``: cells are characters (NO_COLOR), which must be read on greys of no kind.
    """
    segments: list[Segment] = []
    before: Style | None = None
    for text, role in line:
        if not text:
            continue
        cell = plain_cells and role.startswith(("heat:", "seq:"))
        style = style_of(role, None if cell else color_system, palette)
        if color_system == "standard" and role in CALM_MARKS and palette is Palette.DIVERGING:
            text = text.replace(" ", CALM_MARKS[role])
        if text.isspace() and style.bgcolor is not None and not style.reverse:
            style = _ground_of(style)  # without a foreground: half of the bytes of a heatmap
        text = spelled(text, glyphs)
        if style == before:
            segments[-1] = Segment(segments[-1].text + text, style)
        else:
            segments.append(Segment(text, style))
            before = style
    return Strip(segments)


def cut(line: Line, start: int, end: int) -> Line:
    """The cells ``start`` to ``end`` of a line of one-cell characters."""
    out: Line = []
    at = 0
    for span in line:
        size = width_of(span.text)
        first, last = max(start - at, 0), min(end - at, size)
        if first < last:
            out.append(Span(span.text[first:last], span.role))
        at += size
    return out


def tiles(width: int, tile: int) -> list[tuple[int, int]]:
    """Start and end of each tile of a part ``width`` cells wide."""
    return [(at, min(width, at + tile)) for at in range(0, width, tile)]
