"""Spans become strips: the form in which Textual paints a line."""

from collections.abc import Iterable

from rich.segment import Segment
from textual.strip import Strip

from microscope_tui.app.renderables.palette import style_of
from microscope_tui.report.glyphs import Glyphs, spelled
from microscope_tui.report.palettes import Palette
from microscope_tui.report.spans import Line, Span, width_of


def to_strip(
    line: Iterable[Span],
    color_system: str | None,
    glyphs: Glyphs,
    palette: Palette = Palette.DIVERGING,
) -> Strip:
    """One line as a strip. Neighbours of one role are merged: every segment costs bytes."""
    segments: list[Segment] = []
    role_before: str | None = None
    for text, role in line:
        if not text:
            continue
        text = spelled(text, glyphs)
        if role == role_before:
            segments[-1] = Segment(segments[-1].text + text, segments[-1].style)
        else:
            segments.append(Segment(text, style_of(role, color_system, palette)))
            role_before = role
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
