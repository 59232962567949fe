"""``Rows``: a block of ready-made lines that repaints exactly the lines that changed.

Textual re-sends a dirty span from the left edge of its widget, so what changes together should
be a widget of its own, and a wide heatmap is split into ``Tiles``. Never one region per cell.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

from rich.segment import Segment
from rich.style import Style
from textual.app import App
from textual.containers import Horizontal
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from microscope_tui.draw.glyphs import Glyphs, spelled
from microscope_tui.draw.heat import Palette
from microscope_tui.draw.spans import Line, Span, width_of
from microscope_tui.kit.palette import Shades, style_of

TILE = 16
CALM_MARKS = {"heat:-1": "·", "heat:0": "·", "heat:1": "░"}
"""Fill of calm cells in 16 colours, where greys are unreliable."""


def changed_width(before: Strip, after: Strip) -> int:
    """Cells up to the last one that differs: what follows need not be sent."""
    width = max(before.cell_length, after.cell_length)
    if before.cell_length != after.cell_length:
        return width
    for old, new in zip(reversed(list(before)), reversed(list(after)), strict=False):
        if old != new:
            break
        width -= new.cell_length
    return width


class Rows(Widget):
    """A widget of lines. ``show`` them again at any time: only the difference is sent."""

    def __init__(self, glyphs: Glyphs, shades: Shades, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._glyphs = glyphs
        self._shades = shades
        self._strips: list[Strip] = []
        self._lines: Sequence[Line] = ()
        self._palette = Palette.DIVERGING

    @property
    def texts(self) -> list[str]:
        """The lines that are shown, without colours."""
        return [strip.text for strip in self._strips]

    def show(self, lines: Sequence[Line], palette: Palette = Palette.DIVERGING) -> None:
        """Replace all lines; ``palette``: of heatmap cells."""
        self._lines, self._palette = lines, palette
        strips = self._drawn(self.app.console.color_system)
        before, self._strips = self._strips, strips
        count = max(len(before), len(strips))
        known = min(len(before), len(strips))
        changed = [
            Region(0, y, changed_width(before[y], strips[y]), 1)
            for y in range(known)
            if before[y] != strips[y]
        ]
        changed += [Region(0, y, self.size.width, 1) for y in range(known, count)]
        if changed:
            self.refresh(*changed)

    def recolour(self, system: str | None) -> None:
        """Draw the same lines in the colours of ``system``, one of Rich's names; ``None``:
        without.
        """
        self._strips = self._drawn(system)
        self.refresh()

    def _drawn(self, system: str | None) -> list[Strip]:
        system = None if self.app.no_color else system
        return [
            to_strip(line, system, self._glyphs, self._palette, self._shades)
            for line in self._lines
        ]

    def render_line(self, y: int) -> Strip:
        ground = style_of("", shades=self._shades)
        if y < len(self._strips):
            return self._strips[y].adjust_cell_length(self.size.width, ground)
        return Strip.blank(self.size.width, ground)


class Tiles(Horizontal):
    """A changed cell re-sends at most one tile of ``TILE`` columns."""

    def __init__(self, glyphs: Glyphs, shades: Shades, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._glyphs = glyphs
        self._shades = shades
        self._width = 0

    async def fit(self, width: int) -> None:
        """Make the tiles for a width in cells; nothing to do while it stays."""
        if width == self._width:
            return
        self._width = width
        await self.remove_children()
        parts = []
        for start in range(0, width, TILE):
            part = Rows(self._glyphs, self._shades)
            part.styles.width = min(TILE, width - start)
            parts.append(part)
        await self.mount_all(parts)

    def show(self, lines: Sequence[Line], palette: Palette) -> None:
        """Replace all lines, whose characters have one cell each; call ``fit`` before."""
        for at, part in enumerate(self.query(Rows)):
            part.show([cut(line, at * TILE, (at + 1) * TILE) for line in lines], palette)


@contextmanager
def in_truecolor(app: App[None]) -> Iterator[None]:
    """All screens in full colour, whatever the terminal can show; for an export."""
    system = app.console.color_system
    screens = app.screen_stack if system != "truecolor" else []
    rows = [part for screen in screens for part in screen.query(Rows)]
    for part in rows:
        part.recolour("truecolor")
    try:
        yield
    finally:
        for part in rows:
            part.recolour(system)


@cache
def _ground_of(style: Style) -> Style:
    return Style(bgcolor=style.bgcolor)


def to_strip(
    line: Iterable[Span], color_system: str | None, glyphs: Glyphs, palette: Palette, shades: Shades
) -> Strip:
    """Neighbours of one style are merged: every segment costs bytes."""
    segments: list[Segment] = []
    before: Style | None = None
    for text, role in line:
        if not text:
            continue
        style = style_of(role, color_system, palette, shades)
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
