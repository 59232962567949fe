"""One layer on one row: the four parts that stand side by side, as spans.

Each part is a widget of its own on screen (a change in one must not re-send the others), so each
is built on its own here. A row may be several lines high; words and numbers stand on its middle
line.
"""

import math
from collections.abc import Sequence

from microscope_tui.report import words
from microscope_tui.report.glyphs import (
    Glyphs,
    bar,
    bin_loads,
    load_glyph,
    load_level,
    spark,
)
from microscope_tui.report.layout import Layout
from microscope_tui.report.spans import ROLE_OF_SEVERITY, Line, Span, pad
from microscope_tui.watch.curve import Column
from microscope_tui.watch.view import LayerView

FULL_DROP_BAR = 0.5
"""The drop rate that fills the bar: half of everything lost is as bad as it needs to look."""


def label(layer: LayerView, layout: Layout, selected: bool) -> list[Line]:
    """Cursor, name and alert letter."""
    severity = layer.severity
    name_role = "value" if selected or severity else "dim"
    line = [
        Span("▶ " if selected else "  ", "accent"),
        Span(layer.router.name.ljust(layout.label - 5), name_role),
        Span(" "),
        Span(severity.letter if severity else " ", _role(severity)),
        Span(" "),
    ]
    return _tall(line, layout.label, layout.row_height)


def load(layer: LayerView, layout: Layout, colour: bool) -> list[Line]:
    """The load of every expert, ``layout.cell`` cells each."""
    if not layer.load:
        text = "no counts" if layout.heat >= 9 else "-"
        return _tall([Span(text, "faint")], layout.heat, layout.row_height)
    loads = bin_loads(layer.load, layout.heat // layout.cell)
    middle = (layout.row_height - 1) // 2
    return [
        pad(_heat_line(loads, layout.cell, at == middle, colour), layout.heat)
        for at in range(layout.row_height)
    ]


def balance(layer: LayerView, layout: Layout, glyphs: Glyphs) -> list[Line]:
    """Collapse index c and its history on the fixed scale 0 … 1."""
    role = _role(layer.severity) if layer.severity else "value"
    return _number_and_curve(
        words.index(layer.collapse_index), role, layer.balance_history, 1.0, layout, glyphs
    )


def entropy(layer: LayerView, layout: Layout, glyphs: Glyphs) -> list[Line]:
    """Token entropy in nats and its history on the fixed scale 0 … ln E."""
    top = math.log(max(2, layer.router.num_experts))
    return _number_and_curve(
        words.decimal(layer.entropy), "value", layer.entropy_history, top, layout, glyphs
    )


def drop(layer: LayerView, layout: Layout, glyphs: Glyphs) -> list[Line]:
    """Share of dropped assignments: a bar where there is room, and the number."""
    rate = layer.drop_rate
    role = "faint" if rate is None or rate < 0.02 else "warn" if rate <= 0.2 else "crit"
    parts: Line = []
    if layout.drop_bar:
        share = rate / FULL_DROP_BAR if rate is not None and math.isfinite(rate) else 0.0
        parts = [Span(bar(share, layout.drop_bar, glyphs), role), Span(" ")]
    number_role = "faint" if rate is not None and rate < 0.02 else "value"
    line = [*parts, Span(words.percent(rate).rjust(4), number_role)]
    return _tall(line, layout.drop, layout.row_height)


def curve_width(layout: Layout) -> int:
    """Width of the balance and of the entropy column."""
    return 4 + (layout.spark + 1 if layout.spark else 0)


def _number_and_curve(
    number: str, role: str, history: Sequence[Column], top: float, layout: Layout, glyphs: Glyphs
) -> list[Line]:
    height = layout.row_height
    if not layout.spark:
        return _tall([Span(number.rjust(4), role)], 4, height)
    curve_role = "curve" if role == "value" else role
    # From three lines on, the last stays blank: the curves of neighbours must not touch.
    blank = [" " * layout.spark] if height >= 3 else []
    curve = spark(history, layout.spark, top, glyphs, height - len(blank)) + blank
    middle = (height - 1) // 2
    return [
        [Span((number if at == middle else "").rjust(4), role), Span(" "), Span(text, curve_role)]
        for at, text in enumerate(curve)
    ]


def _heat_line(loads: Sequence[float], cell: int, marked: bool, colour: bool) -> Line:
    """One line of cells; equal neighbours are merged, so that they are sent as one."""
    line: Line = []
    for value in loads:
        level = load_level(value)
        role = "heat:dead" if level is None else f"heat:{level}"
        text = _cell_text(level, cell, marked, colour)
        if line and line[-1].role == role:
            line[-1] = Span(line[-1].text + text, role)
        else:
            line.append(Span(text, role))
    return line


def _cell_text(level: int | None, cell: int, marked: bool, colour: bool) -> str:
    if not colour:
        return load_glyph(level) * cell if cell == 1 else load_glyph(level) * (cell - 1) + " "
    mark = "×" if level is None else "▴" if level >= 6 else " "
    return (mark if marked else " ").center(cell)


def _tall(line: Line, width: int, height: int) -> list[Line]:
    """``line`` on the middle one of ``height`` lines."""
    middle = (height - 1) // 2
    return [pad(line if at == middle else [], width) for at in range(height)]


def _role(severity: object) -> str:
    return ROLE_OF_SEVERITY.get(severity, "value")  # type: ignore[call-overload, no-any-return]
