"""One layer on one row: four parts side by side, as spans.

Each part is a widget of its own on screen, so that a change in one does not re-send the others. A
row may be several lines high; words and numbers are on its middle line.
"""

import math
from collections.abc import Sequence

from microscope_tui.lines import missing, words
from microscope_tui.lines.glyphs import Glyphs, bar, spark
from microscope_tui.lines.look import Measure
from microscope_tui.lines.spans import ROLE_OF_SEVERITY, Line, Span, pad
from microscope_tui.lines.table.heat import Heat, heat_line, order_of, values_of, why_nothing
from microscope_tui.lines.table.layout import TableLayout
from microscope_tui.watch import Column, LayerView

FULL_DROP_BAR = 0.5
"""The drop rate that fills the bar."""


def label(layer: LayerView, layout: TableLayout, selected: bool) -> list[Line]:
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


def load(
    layer: LayerView, layout: TableLayout, heat: Heat, chosen: int | None = None
) -> list[Line]:
    """The heatmap of the layer; ``chosen`` is the expert that the cursor is on."""
    why = why_nothing(layer, heat.look, heat.terms)
    if why:
        known = [] if layer.load or layer.max_load is None else [f"{why}, max load "]
        longer = [f"{text}{words.decimal(layer.max_load)}" for text in known]
        text = next((t for t in [*longer, why] if len(t) <= layout.heat), "-")
        return _tall([Span(text, "faint")], layout.heat, layout.row_height)
    values = values_of(layer, heat.look, heat.terms)
    cell, at = layout.cell, None
    if heat.look.measure is Measure.RANKS:
        cell = max(1, layout.heat // len(values))
    elif chosen is not None and chosen < len(values):
        at = list(order_of(layer, heat.look.order)).index(chosen)
    middle = (layout.row_height - 1) // 2
    key = (layer.index, heat.look.measure, heat.look.order)
    lines = {
        marked: heat_line(key, values, heat, layout.heat // cell, cell, marked=marked, chosen=at)
        for marked in ((True, False) if layout.row_height > 1 else (True,))
    }
    return [pad(lines[at == middle], layout.heat) for at in range(layout.row_height)]


def balance(
    layer: LayerView, layout: TableLayout, glyphs: Glyphs, cursor: float | None = None
) -> list[Line]:
    """Collapse index c and its history on the fixed scale 0 … 1."""
    role = _role(layer.severity) if layer.severity else "value"
    number = Span(words.index(layer.collapse_index), role)
    if layer.without != ():  # the line of notes explains the mark
        number = Span(f"*{number.text[:3]}", role)
    if layer.collapse_index is None and _is_empty(layer.balance_history):
        return _reason(missing.no_balance(layer)[0], layout)
    return _number_and_curve(number, layer.balance_history, 1.0, layout, glyphs, cursor)


def entropy(
    layer: LayerView, layout: TableLayout, glyphs: Glyphs, cursor: float | None = None
) -> list[Line]:
    """Token entropy in nats and its history on the fixed scale 0 … ln E."""
    top = math.log(max(2, layer.router.num_experts))
    number = Span(words.decimal(layer.entropy), "value")
    if layer.entropy is None and _is_empty(layer.entropy_history):
        return _reason("not logged", layout)
    return _number_and_curve(number, layer.entropy_history, top, layout, glyphs, cursor)


def drop(layer: LayerView, layout: TableLayout, glyphs: Glyphs) -> list[Line]:
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


def curve_width(layout: TableLayout) -> int:
    """Width of the balance and of the entropy column."""
    return 4 + (layout.spark + 1 if layout.spark else 0)


def _number_and_curve(
    number: Span,
    history: Sequence[Column],
    top: float,
    layout: TableLayout,
    glyphs: Glyphs,
    cursor: float | None,
) -> list[Line]:
    height, width = layout.row_height, layout.spark
    if not width:
        return _tall([Span(number.text.rjust(4), number.role)], 4, height)
    role = "curve" if number.role == "value" else number.role
    # From three lines on, the last stays blank, to separate the curves of neighbours.
    blank = [" " * width] if height >= 3 else []
    curve = spark(history, width, top, glyphs, height - len(blank)) + blank
    cells = -(-len(history) // (2 if glyphs is Glyphs.BRAILLE else 1))
    drawn = min(width, cells)
    past = width if cursor is None else width - drawn + math.ceil(cursor * drawn)
    middle = (height - 1) // 2
    return [
        [
            Span((number.text if at == middle else "").rjust(4), number.role),
            Span(" "),
            Span(text[:past], role),
            Span(text[past:], "faint"),  # after the shown step
        ]
        for at, text in enumerate(curve)
    ]


def _is_empty(history: Sequence[Column]) -> bool:
    return all(column.mean != column.mean for column in history)


def _reason(why: str, layout: TableLayout) -> list[Line]:
    """Why a column of a number and its curve is empty."""
    width = curve_width(layout)
    text = f"   {why}" if len(why) + 3 <= width else "   -"
    return _tall([Span(text, "faint")], width, layout.row_height)


def _tall(line: Line, width: int, height: int) -> list[Line]:
    """``line`` on the middle one of ``height`` lines."""
    middle = (height - 1) // 2
    return [pad(line if at == middle else [], width) for at in range(height)]


def _role(severity: object) -> str:
    return ROLE_OF_SEVERITY.get(severity, "value")  # type: ignore[call-overload, no-any-return]
