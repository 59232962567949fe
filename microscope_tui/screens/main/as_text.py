"""The main screen as plain text, for where there is no terminal: every layer on one line."""

from microscope_tui.draw import frame, table, time_line, words
from microscope_tui.draw.cost import cost_lines
from microscope_tui.draw.glyphs import Glyphs, spelled
from microscope_tui.draw.heat import Heat
from microscope_tui.draw.spans import Line, Span, crop, plain
from microscope_tui.draw.table import TableLayout
from microscope_tui.watch import LayerView, Pin, RunView, RunWatch, view_of
from microscope_tui.watch.cost import OF_HEADER, CostRequest, cost_of


def snapshot_text(
    watch: RunWatch,
    columns: int = 100,
    rows: int | None = None,
    glyphs: Glyphs = Glyphs.BRAILLE,
    at: Pin | None = None,
    cost: CostRequest = OF_HEADER,
) -> str:
    """All layers unless ``rows``."""
    probe = view_of(watch, at=at)
    costs = cost_lines(cost_of(watch, at, cost), columns, whole=not rows)
    layout = table.fit(probe, columns, rows - len(costs)) if rows else table.whole(probe, columns)
    points = max(1, layout.spark * glyphs.points)
    view = view_of(watch, points, time_line.ribbon_width(columns), at)
    lines = [frame.header(view, columns, glyphs, brand=False)]
    verdict = frame.verdict(view, columns, layout.verdict_lines, compact=layout.compact)
    lines += [*(line for line in verdict if plain(line).strip()), *costs]
    lines.append(table.column_heads(view, layout))
    lines += _body(view, layout, glyphs)
    lines.append(time_line.ribbon(view, columns, view.life.word if at is None else "then"))
    lines.append(time_line.notes(view, columns, layout.hidden))
    dead = "dead" if layout.experts_per_cell == 1 else "one of them dead"
    legend = f"        load: x {dead}  - starving  . fair  + over  # hot"
    if not any(layer.load for layer in view.layers):
        legend = f" {words.no_counts(view)}" if view.layers else ""
    lines.append(crop([Span(legend, "dim")], columns))
    return "\n".join(spelled(plain(line), glyphs) for line in lines)


def _body(view: RunView, layout: TableLayout, glyphs: Glyphs) -> list[Line]:
    worst_first = sorted(view.layers, key=_health)
    lines: list[Line] = []
    for layer in sorted(worst_first[: layout.visible_layers], key=lambda layer: layer.index):
        parts = [
            table.label(layer, layout, view.worst is not None and layer is worst_first[0]),
            table.load(layer, layout, Heat(colour=False)),
            table.balance(layer, layout, glyphs),
        ]
        if layout.entropy:
            parts.append(table.entropy(layer, layout, glyphs, ends=view.timeline.entropy_ends))
        if layout.drop:
            parts.append(table.drop(layer, layout, glyphs))
        for name, cells, *rest in zip(*parts, strict=True):
            lines.append([*name, *cells, *(span for part in rest for span in (Span("  "), *part))])
    return lines


def _health(layer: LayerView) -> tuple[int, float]:
    balance = layer.judged_balance
    if balance is None:
        balance = 2.0  # behind all that is known
    return -(layer.severity or 0), balance
