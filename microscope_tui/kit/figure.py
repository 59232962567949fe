"""Charts over time: title, y labels, curves, markers, the cursor, ticks.

plotext draws the curves only; labels, markers, the cursor and roles are added here. plotext is
imported when the first curve is drawn, which many sessions never do.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

from microscope_tui.draw.charts import GUTTER, Chart, Curve, Scale, names_width, smoothed
from microscope_tui.draw.glyphs import Glyphs
from microscope_tui.draw.spans import Line, Span, merged, pad, placed, shortened
from microscope_tui.draw.time_line import EVALUATION, RESTART, TimeScale

_MARKERS = {Glyphs.BRAILLE: ("braille", 2), Glyphs.BLOCK: ("hd", 2), Glyphs.ASCII: ("*", 1)}
"""plotext's marker, and its dots per cell width."""
_SGR = re.compile(r"\x1b\[(?:38;5;(\d+)|[\d;]*)m")
_GLYPHS = {
    Glyphs.BRAILLE: {"limit": "┈", "cursor": "│", "point": "●", "onset": "┊", RESTART: "╎"},
    Glyphs.ASCII: {"limit": "-", "cursor": "|", "point": "o", "onset": ":", RESTART: "!"},
}
_GLYPHS[Glyphs.BLOCK] = _GLYPHS[Glyphs.BRAILLE]

_NAMES_FROM_ROWS = 5
"""Rows of a plot from which onsets carry the names of their rules; in focus they always do."""
_NAME_ROWS = 4
"""Rows that names take: onsets beside each other all need room."""

Cell = tuple[str, str]
Segment = tuple[tuple[float, ...], tuple[float, ...], int]
"""Steps from the first of the window, places on the y axis (0 … 1), number of the series."""


def figure(
    chart: Chart,
    time: TimeScale,
    size: tuple[int, int],
    glyphs: Glyphs,
    *,
    step: int,
    smoothing: float = 0.0,
    focused: bool = False,
    ticks: bool = True,
) -> list[Line]:
    """A chart in exactly ``size`` cells, as lines.

    Args:
        chart: what to draw.
        time: its x axis.
        size: width and height.
        glyphs: alphabet of the curves.
        step: the shown one, to which the value in the title belongs.
        smoothing: weight of earlier values in the exponential mean; 0 for none. The measured values
            stay behind it, faint.
        focused: whether keys act on this chart.
        ticks: labels of the time axis in the last line.
    """
    width, height = size
    title = chart.title(step, smoothing, width, focused=focused)
    margin = names_width(width, named=any(curve.name for curve in chart.curves))
    rows, columns = height - 1 - ticks, width - GUTTER - margin
    if rows < 1 or columns < 8:
        return [title, *[pad([], width)] * (height - 1)][:height]
    if not chart.measured:
        note = pad([Span(" " * GUTTER + chart.nothing, "faint")], width)
        return [title, note, *[pad([], width)] * (height - 2)][:height]
    plot = _Plot(chart, time, (columns, rows), glyphs, chart.scale())
    cells = plot.curves(smoothing)
    plot.lay_over(cells, named=focused or rows >= _NAMES_FROM_ROWS)
    ends: list[Line] = [[]] * rows
    if margin:
        ends = [[Span(f" {text}", role)] for text, role in plot.names(cells, margin - 1)]
    lines = [
        pad([Span(f"{text:>{GUTTER - 1}} ", role), *merged(row), *end], width)
        for (text, role), row, end in zip(plot.labels(), cells, ends, strict=True)
    ]
    if ticks:
        lines.append(pad([Span(" " * GUTTER), *time.tick_line(columns)], width))
    return [title, *lines]


class _Plot(NamedTuple):
    """The area of the curves: how many cells, and which values are at its bottom and top."""

    chart: Chart
    time: TimeScale
    size: tuple[int, int]
    glyphs: Glyphs
    left: Scale

    def row_of(self, value: float) -> int | None:
        """From the top; ``None`` outside the scale."""
        rows, share = self.size[1], self.left.share(value)
        if not 0 <= share <= 1:
            return None
        return rows - 1 - min(rows - 1, int(share * rows))

    def scale_of(self, curve: Curve) -> Scale:
        of_last = self.chart.right or self.left
        return of_last if curve is self.chart.curves[-1] else self.left

    def curves(self, smoothing: float) -> list[list[Cell]]:
        drawn = [(curve, curve.values, curve.role) for curve in self.chart.curves]
        if smoothing:
            drawn = [
                *((curve, values, "faint") for curve, values, _ in drawn),
                *((curve, smoothed(values, smoothing), role) for curve, values, role in drawn),
            ]
        segments = [
            segment
            for number, (curve, values, _) in enumerate(drawn, 1)
            for segment in self._segments(curve, values, number)
        ]
        marker, dots = _MARKERS[self.glyphs]
        across = self.time.middles(dots * self.size[0])
        text = _canvas(self.size, marker, across, tuple(segments))
        return _cells(text, self.size, [role for *_, role in drawn])

    def _segments(self, curve: Curve, values: Sequence[float], number: int) -> Iterator[Segment]:
        """A series split at its gaps, clipped to the scale and the window."""
        (first, last), scale, steps = self.time.window, self.scale_of(curve), curve.steps
        inside = slice(max(0, bisect_right(steps, first) - 1), bisect_right(steps, last))
        points = list(zip(steps, values, strict=False))[inside]
        for known, run in groupby(points, key=lambda point: point[1] == point[1]):
            if known:
                own = list(run)
                xs = tuple(float(min(last, max(first, step)) - first) for step, _ in own)
                clipped = (min(scale.top, max(scale.bottom, value)) for _, value in own)
                yield xs, tuple(map(scale.share, clipped)), number

    def names(self, drawn: list[list[Cell]], width: int) -> list[Cell]:
        """The names of lines: in the plot beside a short one, else right of it with the axis."""
        chart, (first, last) = self.chart, self.time.window
        columns, rows = self.size
        cells: list[Cell] = [("", "")] * rows
        if chart.right is not None:
            ends = chart.right.top, chart.right.bottom
            cells[0], cells[-1] = ((chart.right.text(end), chart.curves[-1].role) for end in ends)
        for curve in chart.curves:
            known = [v for v in curve.values if v == v]
            free = [row for row, (text, _) in enumerate(cells) if not text]
            if curve.name and known and free:
                end = rows * (1.0 - self.scale_of(curve).share(known[-1]))
                text = shortened(curve.name, width)
                at = int((curve.steps[-1] - first + 0.5) * columns / (last - first + 1)) + 2
                near = sorted(range(rows), key=lambda row: abs(row + 0.5 - end))
                if any(placed(drawn[row], at, text, curve.role, margin=1) for row in near):
                    continue
                cells[min(free, key=near.index)] = (text, curve.role)
        return cells

    def lay_over(self, cells: list[list[Cell]], *, named: bool) -> None:
        time, signs = self.time, _GLYPHS[self.glyphs]
        width, _ = self.size
        if named:
            self._name_onsets(cells)
        self._mark_events(cells)
        cursor = time.column_of(time.cursor, width) if time.cursor is not None else None
        if cursor is not None:
            for line in cells:
                _put(line, cursor, signs["cursor"], "accent")
        for level, _ in self.chart.limits:
            if (row := self.row_of(level)) is not None:
                for column in range(width):
                    _put(cells[row], column, signs["limit"], "faint")
        for step, value in self.chart.points:
            at, row = time.column_of(step, width), self.row_of(value)
            if at is not None and row is not None:
                cells[row][at] = (signs["point"], "title")
        if cursor is not None:
            _fade_after(cells, cursor)

    def _mark_events(self, cells: list[list[Cell]]) -> None:
        signs = _GLYPHS[self.glyphs]
        for mark in self.time.marks:
            at = self.time.column_of(mark.step, self.size[0])
            if at is not None:
                across = cells[-1:] if mark.what == EVALUATION else cells
                for line in across:
                    _put(line, at, signs.get(mark.what, "'"), mark.role)

    def _name_onsets(self, cells: list[list[Cell]]) -> None:
        seen = [mark for mark in self.time.marks if mark.rule and self.time.window.has(mark.step)]
        seen.sort(key=lambda mark: mark.step)
        first = {mark.rule: mark for mark in reversed(seen)}
        for mark in reversed(first.values()):
            at = self.time.column_of(mark.step, self.size[0]) or 0
            places = [(line, at + 1) for line in cells[:_NAME_ROWS]]
            places += [(line, at - len(mark.rule)) for line in cells[:_NAME_ROWS]]
            any(placed(line, start, mark.rule, mark.role, margin=1) for line, start in places)

    def labels(self) -> list[Cell]:
        scale, rows = self.left, self.size[1]
        labels: list[Cell] = [("", "")] * rows
        levels = *((value, "dim") for value in scale.powers), *self.chart.limits
        for level, role in levels:
            if (row := self.row_of(level)) is not None and 0 < row < rows - 1:
                labels[row] = (scale.text(level), role)
        labels[-1] = (scale.text(scale.bottom), "dim")
        labels[0] = (scale.text(scale.top), "dim")
        return labels


def _put(line: list[Cell], at: int, char: str, role: str) -> None:
    if line[at][0] == " ":
        line[at] = (char, role)


def _fade_after(cells: list[list[Cell]], cursor: int) -> None:
    for line in cells:
        char, role = line[cursor]
        if role not in ("", "accent"):
            line[cursor] = (char, "title")
        line[cursor + 1 :] = [(char, role and "faint") for char, role in line[cursor + 1 :]]


@lru_cache(maxsize=64)
def _canvas(
    size: tuple[int, int], marker: str, across: tuple[float, float], segments: tuple[Segment, ...]
) -> str:
    import plotext

    plotext.clear_figure()
    plotext.limit_size(False, False)
    plotext.plot_size(*size)
    plotext.theme("clear")
    plotext.xaxes(False, False)
    plotext.yaxes(False, False)
    for xs, ys, series in segments:
        plotext.plot(list(xs), list(ys), marker=marker, color=series)
    plotext.xlim(*across)
    plotext.ylim(0.0, 1.0)
    plotext.xticks([])
    plotext.yticks([])
    return str(plotext.build())


def _cells(text: str, size: tuple[int, int], roles: Sequence[str]) -> list[list[Cell]]:
    width, height = size
    rows: list[list[Cell]] = [[]]
    role = ""
    for at, part in enumerate(_SGR.split(text)):
        if at % 2:
            role = roles[int(part) - 1] if part else ""
            continue
        for char in part:
            match char:
                case "\n":
                    rows.append([])
                case " ":
                    rows[-1].append((" ", ""))
                case _:
                    rows[-1].append((char, role))
    rows = [[*row, *[(" ", "")] * width][:width] for row in rows[:height]]
    return rows + [[(" ", "")] * width for _ in range(height - len(rows))]
