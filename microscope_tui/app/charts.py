"""Charts over time: title, y labels, curves, markers, the cursor, ticks.

plotext draws the curves only; labels, markers, the cursor and roles are added here. plotext is
imported when the first curve is drawn, which many sessions never do.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby

from microscope_tui.lines import (
    EVALUATION,
    GUTTER,
    RESTART,
    Chart,
    Glyphs,
    Line,
    Span,
    TimeScale,
    pad,
    smoothed,
    tick_text,
)

_MARKERS = {Glyphs.BRAILLE: ("braille", 2), Glyphs.BLOCK: ("hd", 2), Glyphs.ASCII: ("*", 1)}
"""plotext's marker, and its dots per cell width."""
_SGR = re.compile(r"\x1b\[(?:38;5;(\d+)|[\d;]*)m")
_GLYPHS = {
    Glyphs.BRAILLE: {"limit": "┈", "cursor": "│", "point": "●", "onset": "┊", RESTART: "╎"},
    Glyphs.ASCII: {"limit": "-", "cursor": "|", "point": "o", "onset": ":", RESTART: "!"},
}
_GLYPHS[Glyphs.BLOCK] = _GLYPHS[Glyphs.BRAILLE]

Cell = tuple[str, str]
Segment = tuple[tuple[float, ...], tuple[float, ...], int]
"""Steps from the first of the window, values and the number of their series; without gaps."""


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
    """A chart in exactly ``size`` cells.

    Args:
        step: the shown one, to which the value in the title belongs.
        smoothing: weight of what came before in the exponential mean; what was measured stays
            behind it, faint.
        ticks: labels of the time axis in the last line.
    """
    width, height = size
    title = chart.title(step, smoothing, width, focused=focused)
    rows, columns = height - 1 - ticks, width - GUTTER
    if rows < 1 or columns < 8:
        return [title, *[pad([], width)] * (height - 1)][:height]
    if not chart.measured:
        note = [pad([Span(" " * GUTTER + chart.nothing, "faint")], width)]
        blank = pad([], width)
        return [title, *note, *[blank] * (height - 2)][:height]
    bottom, top, _ = chart.scale()
    cells = _curves(chart, time, (columns, rows), glyphs, (bottom, top), smoothing)
    _lay_over(cells, chart, time, glyphs, (bottom, top))
    labels = _labels(chart, rows, (bottom, top))
    lines = [
        pad([Span(f"{text:>{GUTTER - 1}} ", role), *_merged(row)], width)
        for (text, role), row in zip(labels, cells, strict=True)
    ]
    below = [pad([Span(" " * GUTTER), *time.tick_line(columns)], width)] if ticks else []
    return [title, *lines, *below]


def row_of(value: float, rows: int, ends: tuple[float, float]) -> int | None:
    """The row of a value, counted from the top; ``None`` outside the scale."""
    bottom, top = ends
    share = (value - bottom) / (top - bottom)
    return rows - 1 - min(rows - 1, int(share * rows)) if 0 <= share <= 1 else None


def _curves(
    chart: Chart,
    time: TimeScale,
    size: tuple[int, int],
    glyphs: Glyphs,
    ends: tuple[float, float],
    smoothing: float,
) -> list[list[Cell]]:
    """The curves alone, as characters with roles."""
    roles: list[str] = []
    segments: list[Segment] = []

    def add(steps: Sequence[int], values: Sequence[float], role: str) -> None:
        segments.extend(_segments(steps, values, len(roles) + 1, time, ends))
        roles.append(role)

    if smoothing:
        for curve in chart.curves:
            add(curve.steps, curve.values, "faint")
    for curve in chart.curves:
        values = smoothed(curve.values, smoothing) if smoothing else curve.values
        add(curve.steps, values, curve.role)
    marker, dots = _MARKERS[glyphs]
    across = time.middles(dots * size[0])
    text = _canvas(size, marker, across, ends, tuple(segments))
    return _cells(text, size, roles)


def _segments(
    steps: Sequence[int],
    values: Sequence[float],
    series: int,
    time: TimeScale,
    ends: tuple[float, float],
) -> list[Segment]:
    """A series split at its gaps, clipped to the scale and the window."""
    (first, last), (bottom, top) = time.window, ends
    inside = slice(max(0, bisect_right(steps, first) - 1), bisect_right(steps, last))
    points = list(zip(steps, values, strict=False))[inside]
    out: list[Segment] = []
    for known, run in groupby(points, key=lambda point: point[1] == point[1]):
        if known:
            own = list(run)
            xs = tuple(float(min(last, max(first, step)) - first) for step, _ in own)
            out.append((xs, tuple(min(top, max(bottom, value)) for _, value in own), series))
    return out


@lru_cache(maxsize=64)
def _canvas(
    size: tuple[int, int],
    marker: str,
    across: tuple[float, float],
    up: tuple[float, float],
    segments: tuple[Segment, ...],
) -> str:
    """The plotext drawing, cached by its numbers."""
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
    plotext.ylim(*up)
    plotext.xticks([])
    plotext.yticks([])
    return str(plotext.build())


def _cells(text: str, size: tuple[int, int], roles: Sequence[str]) -> list[list[Cell]]:
    """The picture as cells: colours are the numbers of the series."""
    width, height = size
    rows: list[list[Cell]] = [[]]
    role = ""
    for at, part in enumerate(_SGR.split(text)):
        if at % 2:
            role = roles[int(part) - 1] if part else ""
            continue
        for line_at, line in enumerate(part.split("\n")):
            if line_at:
                rows.append([])
            rows[-1] += [(char, role if char != " " else "") for char in line]
    rows = [[*row, *[(" ", "")] * width][:width] for row in rows[:height]]
    return rows + [[(" ", "")] * width for _ in range(height - len(rows))]


def _lay_over(
    cells: list[list[Cell]],
    chart: Chart,
    time: TimeScale,
    glyphs: Glyphs,
    ends: tuple[float, float],
) -> None:
    """Limits, markers and points; the cursor, and everything after it faint."""
    rows, width, signs = len(cells), len(cells[0]), _GLYPHS[glyphs]

    def put(row: int, column: int, char: str, role: str, *, over: bool = False) -> None:
        if over or cells[row][column][0] == " ":
            cells[row][column] = (char, role)

    for mark in time.marks:
        at = time.column_of(mark.step, width)
        if at is not None:
            for row in [rows - 1] if mark.what == EVALUATION else range(rows):
                put(row, at, signs.get(mark.what, "'"), mark.role)
    cursor = time.column_of(time.cursor, width) if time.cursor is not None else None
    if cursor is not None:
        for row in range(rows):
            put(row, cursor, signs["cursor"], "accent")
    for level, _ in chart.limits:
        row_at = row_of(level, rows, ends)
        for column in range(width) if row_at is not None else ():
            put(row_at or 0, column, signs["limit"], "faint")
    for step, value in chart.points:
        at, row_at = time.column_of(step, width), row_of(value, rows, ends)
        if at is not None and row_at is not None:
            put(row_at, at, signs["point"], "title", over=True)
    if cursor is not None:
        for row_cells in cells:
            char, role = row_cells[cursor]
            row_cells[cursor] = (char, "title" if role not in ("", "accent") else role)
            row_cells[cursor + 1 :] = [(c, "faint" if r else r) for c, r in row_cells[cursor + 1 :]]


def _labels(chart: Chart, rows: int, ends: tuple[float, float]) -> list[Cell]:
    """The y axis: both ends, and the limits in the role of what lies beyond them."""
    bottom, top = ends
    labels: list[Cell] = [("", "")] * rows
    for level, role in chart.limits:
        if (row := row_of(level, rows, ends)) is not None and 0 < row < rows - 1:
            labels[row] = (tick_text(level, top - bottom), role)
    texts = chart.ends or (tick_text(bottom, top - bottom), tick_text(top, top - bottom))
    labels[-1], labels[0] = ((text, "dim") for text in texts)
    return labels


def _merged(cells: Sequence[Cell]) -> Line:
    return [
        Span("".join(char for char, _ in run), role)
        for role, run in groupby(cells, key=lambda cell: cell[1])
    ]
