"""The main screen as plain text, without a terminal."""

from microscope_tui.lines import missing
from microscope_tui.lines.glyphs import Glyphs, spelled
from microscope_tui.lines.spans import Line, Span, crop, plain
from microscope_tui.lines.table import frame, layer_row, time_line
from microscope_tui.lines.table.heat import Heat
from microscope_tui.lines.table.layout import TableLayout, fit, worst_first
from microscope_tui.watch import Pin, RunView, RunWatch, view_of

_ALL_WORDS = 9
"""Lines that hold any verdict."""


def snapshot_text(
    watch: RunWatch,
    columns: int = 100,
    rows: int | None = None,
    glyphs: Glyphs = Glyphs.BRAILLE,
    at: Pin | None = None,
) -> str:
    """The main screen of ``watch`` as text of ``columns`` cells; all layers unless ``rows``."""
    probe = view_of(watch, at=at)
    all_words = not rows
    if not rows:  # as many as show every layer on one line: a tall table has more lines around it
        rows = len(probe.layers) + 6
        rows += 7 if rows >= 30 else 0
    layout = fit(probe, columns, rows)
    per_cell = 2 if glyphs is Glyphs.BRAILLE else 1
    view = view_of(watch, max(1, layout.spark * per_cell), time_line.ribbon_width(columns), at)
    lines = [frame.header(view, columns, glyphs, brand=False)]
    verdict = frame.verdict(view, columns, _ALL_WORDS if all_words else 3)
    lines += [line for line in verdict if plain(line).strip()]
    lines.append(frame.column_heads(view, layout))
    lines += _table(view, layout, glyphs)
    lines.append(time_line.ribbon(view, columns, glyphs, view.state if at is None else "then"))
    lines.append(time_line.notes(view, layout, glyphs))
    legend = "        load: x dead  - starving  . fair  + over  # hot"
    if not any(layer.load for layer in view.layers):
        legend = f" {missing.no_counts(view)}" if view.layers else ""
    lines.append(crop([Span(legend, "dim")], columns))
    return "\n".join(spelled(plain(line), glyphs) for line in lines)


def _table(view: RunView, layout: TableLayout, glyphs: Glyphs) -> list[Line]:
    """The layers that fit: all of them, else the worst, in forward order."""
    shown = sorted(worst_first(view)[: layout.visible_layers])
    worst = worst_first(view)[:1]
    lines: list[Line] = []
    for index in shown:
        layer = view.layers[index]
        selected = view.worst is not None and index in worst
        parts = (
            layer_row.label(layer, layout, selected),
            layer_row.load(layer, layout, Heat(colour=False)),
            layer_row.balance(layer, layout, glyphs),
            layer_row.entropy(layer, layout, glyphs),
            layer_row.drop(layer, layout, glyphs),
        )
        gap = Span("  ")
        for label, load, balance, entropy, drop in zip(*parts, strict=True):
            lines.append([*label, *load, gap, *balance, gap, *entropy, gap, *drop])
    return lines
