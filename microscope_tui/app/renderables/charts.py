"""Charts of one layer through plotext: a title, axes in steps, at most one column a point.

plotext draws into one figure of its own and returns ANSI text; both stay inside this file.
"""

import io
import math
from collections.abc import Sequence

import plotext
from rich.console import Console
from rich.style import Style
from rich.text import Text
from textual.strip import Strip

from microscope_tui.app.renderables import palette
from microscope_tui.report.spans import Span, crop, plain
from microscope_tui.watch.curve import Column

_CONSOLE = Console(file=io.StringIO(), color_system="truecolor")  # only resolves styles
_GROUND = Style(color=palette.DIM, bgcolor=palette.GROUND)
_MARKERS = {"braille": "braille", "block": "hd", "ascii": "*"}


class Curve:
    """One series of a chart: its columns, its colour, and whether dips or spikes matter."""

    def __init__(self, columns: Sequence[Column], colour: str, edge: str = "mean") -> None:
        self.columns = columns
        self.colour = colour
        self.edge = edge
        """``low``, ``mean`` or ``high``: which value of a column is drawn."""

    def points(self, steps: Sequence[float]) -> tuple[list[float], list[float]]:
        """Finite points; gaps are left out."""
        xs, ys = [], []
        for step, column in zip(steps, self.columns, strict=False):
            value = float(getattr(column, self.edge))
            if math.isfinite(value):
                xs.append(step)
                ys.append(value)
        return xs, ys


def curves(
    title: str,
    series: Sequence[Curve],
    last_step: int,
    size: tuple[int, int],
    *,
    top: float | None = None,
    limits: Sequence[tuple[float, str]] = (),
    glyphs: str = "braille",
) -> list[Strip]:
    """A line chart over steps.

    Args:
        top: upper end of the scale, which starts at 0; by default what the data need.
        limits: horizontal lines, each with its colour.
    """
    width, height = size
    _start(width, height - 1)
    drawn = False
    high = top or 0.0
    for curve in series:
        count = len(curve.columns)
        steps = [1 + (last_step - 1) * (i + 0.5) / count for i in range(count)]
        xs, ys = curve.points(steps)
        if xs:
            drawn = True
            high = max(high, *ys) if top is None else high
            plotext.plot(xs, ys, marker=_MARKERS[glyphs], color=_rgb(curve.colour))
    if not drawn:
        return _note(title, "not measured", size)
    for level, colour in limits:
        plotext.hline(level, color=_rgb(colour))
    plotext.ylim(0, high or 1.0)
    ticks = [1 + (last_step - 1) * i / 3 for i in range(4)]
    plotext.xticks(ticks, [f"{round(tick):,}" for tick in ticks])
    plotext.yfrequency(3 if height < 10 else 5)
    return _built(title, size)


def bars(
    title: str, values: Sequence[float], size: tuple[int, int], *, glyphs: str = "braille"
) -> list[Strip]:
    """One bar per expert, with a line at the fair share."""
    width, height = size
    room = max(4, width - 8)
    if not values:
        return _note(title, "no counts in the log", size)
    if len(values) > room:
        title += f" (first {room} of {len(values)} experts)"
        values = values[:room]
    _start(width, height - 1)
    step = max(1, len(values) // 8)
    marker = "#" if glyphs == "ascii" else "sd"
    groups: dict[str, list[tuple[int, float]]] = {}
    for expert, value in enumerate(values):
        groups.setdefault(_load_colour(value), []).append((expert, value))
    for colour, members in groups.items():
        plotext.bar(
            [expert for expert, _ in members],
            [value for _, value in members],
            color=_rgb(colour),
            marker=marker,
            width=0.6,
        )
    plotext.hline(1.0, color=_rgb(palette.DIM))
    plotext.xlim(-0.7, len(values) - 0.3)
    plotext.ylim(0, max(2.0, *values))
    shown = list(range(0, len(values), step))
    plotext.xticks(shown, [str(expert) for expert in shown])
    plotext.yfrequency(3 if height < 10 else 5)
    return _built(title, size)


def _start(width: int, height: int) -> None:
    plotext.clear_figure()
    plotext.limit_size(False, False)
    plotext.plot_size(width, height)
    plotext.theme("clear")
    plotext.xaxes(False, False)
    plotext.yaxes(False, False)


def _built(title: str, size: tuple[int, int]) -> list[Strip]:
    """The figure below its title (plotext leaves out a title that is wider than the figure)."""
    text = Text.from_ansi(plotext.build())
    return _block([_title(title, size[0]), *text.split("\n")], size)


def _note(title: str, note: str, size: tuple[int, int]) -> list[Strip]:
    above = [Text("")] * max(0, size[1] // 2 - 1)
    return _block([_title(title, size[0]), *above, Text(note.center(size[0]))], size)


def _title(title: str, width: int) -> Text:
    shown = plain(crop([Span(f"  {title}")], width))
    return Text(shown)


def _block(lines: Sequence[Text], size: tuple[int, int]) -> list[Strip]:
    width, height = size
    for line in lines:
        line.stylize_before(_GROUND)
    strips = [
        Strip([s for s in line.render(_CONSOLE) if s.text != "\n"]).adjust_cell_length(
            width, _GROUND
        )
        for line in lines[:height]
    ]
    return strips + [Strip.blank(width, _GROUND) for _ in range(height - len(strips))]


def _load_colour(value: float) -> str:
    if value <= 0:
        return palette.FAINT
    octaves = math.log2(value)
    return palette.ACCENT if octaves < -0.7 else palette.CURVE if octaves <= 0.65 else palette.WARN


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
