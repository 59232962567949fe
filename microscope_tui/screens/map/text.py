"""The map of a run as lines: a row per layer, a column per stretch of steps.

Cells have the colours of the heatmap: calm where the value is healthy, hot where it is not.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

import msgspec

from microscope_tui.draw import words
from microscope_tui.draw.glyphs import HOT_LEVEL, load_glyph, load_level
from microscope_tui.draw.heat import HALVES, Heat
from microscope_tui.draw.spans import Line, Span, dim, merged, pad, row_label, with_notes
from microscope_tui.runlog import plural
from microscope_tui.watch import LayerView, Quantity, RunMap, RunView, Window

_HOTTEST, _FIRST = 16, 3  # levels beyond the calm band
_HOT = 0.5
"""Of the way from calm to the worst, from which a cell is hot: balance c .375."""
_CALM_BALANCE = 0.75
_CALM_ENTROPY = 0.3  # of the highest possible entropy
_CALM_DROPS, _MOST_DROPS = 0.02, 0.5
_TALLEST = 5
_SAMPLES: Mapping[Quantity, Sequence[float]] = {
    Quantity.BALANCE: (1.0, 0.6, 0.35, 0.15, 0.0),
    Quantity.LOAD: (1.0, 3.0, 8.0, 16.0),
    Quantity.ENTROPY: (1.0, 0.25, 0.1, 0.0),
    Quantity.DROPS: (0.0, 0.1, 0.25, 0.5),
}
_NO_VALUE = 99


class MapLayout(msgspec.Struct, frozen=True):
    """The room of the map, in cells and lines."""

    label: int
    """Cells of the names of the layers."""
    columns: int
    """Cells of the time axis."""
    height: int
    """Lines of one layer."""
    per_line: int
    """Layers of a line: 1 or 2."""
    visible: int
    """Lines, or layers of ``height`` lines, that fit."""


def fit_map(view: RunView, columns: int, rows: int, shown: int, *, halves: bool) -> MapLayout:
    """``shown``: layers; ``halves``: a cell can have two colours."""
    names = max((len(layer.router.name) for layer in view.layers), default=2)
    label = min(max(8, names + 5), columns // 3)
    height = max(1, min(_TALLEST, rows // max(1, shown)))
    per_line = 2 if halves and shown > rows else 1
    return MapLayout(label, columns - label - 1, height, per_line, max(1, rows // height))


def level_of(value: float, quantity: Quantity, layer: LayerView) -> int:
    """Among those of the heatmap; 0 is calm."""
    if value != value:
        return _NO_VALUE
    match quantity:
        case Quantity.LOAD:
            return max(0, load_level(value, max(1, layer.router.num_experts)) or 0)
        case Quantity.DROPS:
            return _graded((value - _CALM_DROPS) / (_MOST_DROPS - _CALM_DROPS))
        case Quantity.ENTROPY:
            return _graded(1 - value / words.most_entropy(layer) / _CALM_ENTROPY)
    return _graded(1 - value / _CALM_BALANCE)


def _graded(badness: float) -> int:
    """Calm up to 0, the hottest from 1 on."""
    if badness <= 0:
        return 0
    if badness < _HOT:
        return round(_FIRST + badness / _HOT * (HOT_LEVEL - 1 - _FIRST))
    return round(HOT_LEVEL + (min(1.0, badness) - _HOT) / (1 - _HOT) * (_HOTTEST - HOT_LEVEL))


def levels_of(found: RunMap, quantity: Quantity, layers: Sequence[LayerView]) -> list[list[int]]:
    """The colours of all cells, by layer and column: see ``level_of``."""
    return [
        [level_of(value, quantity, layer) for value in row]
        for layer, row in zip(layers, found.rows, strict=False)
    ]


def cell_columns(axis: Sequence[int], window: Window, cells: int) -> list[int]:
    """The column of ``axis`` that each cell of the time axis shows."""
    first, last = window
    span = last - first + 1
    steps = (first + span * (2 * at + 1) // (2 * cells) for at in range(cells))
    return [max(0, bisect_right(axis, step) - 1) for step in steps]


def map_line(
    rows: Sequence[Sequence[int]],
    columns: Sequence[int],
    heat: Heat,
    cursor: tuple[int, int] | None,
) -> Line:
    """One or two layers; ``cursor``: position of its layer, and its column."""
    at, here = cursor or (0, -1)
    cells = []
    for column in columns:
        level = rows[0][column]
        text = " "
        roles = [_ROLES[row[column]] for row in rows]
        if column == here:
            roles[at] = "cursor"
        if len(set(roles)) > 1:
            text = HALVES
        elif not heat.colour and level != _NO_VALUE:
            text = load_glyph(level)
        cells.append((text, "|".join(dict.fromkeys(roles))))
    return merged(cells)


_ROLES = {level: f"heat:{level}" for level in range(_HOTTEST + 1)} | {_NO_VALUE: ""}


def map_label(layers: Sequence[LayerView], layout: MapLayout, selected: int) -> Line:
    """Of the chosen layer of a line, else of the first."""
    chosen = next((layer for layer in layers if layer.index == selected), None)
    worst = max((layer.severity for layer in layers if layer.severity), default=None)
    name, width = (chosen or layers[0]).router.name, layout.label - 1
    return [*row_label(name, worst, width, chosen=chosen is not None), Span(" ")]


def _spelled(quantity: Quantity) -> Callable[[float | None], str]:
    if quantity is Quantity.DROPS:
        return words.percent
    return words.index if quantity is Quantity.BALANCE else words.decimal


def map_title(quantity: Quantity, layers: int, steps: int, width: int) -> Line:
    """``steps``: of one cell."""
    worst = "lowest" if quantity.low_is_bad else "highest"
    left = [Span(f"  {worst} {quantity}", "title"), dim(f", {plural(steps, 'step')} a cell")]
    return with_notes(left, [f"{layers} layers", "tab: another measure"], width)


def map_legend(quantity: Quantity, layers: Sequence[LayerView], heat: Heat, width: int) -> Line:
    """Samples of the colours with their values; the entropy has the scale of the first layer."""
    if not layers:
        return pad([], width)
    layer = layers[0]
    scale = words.most_entropy(layer) if quantity is Quantity.ENTROPY else 1.0
    line: Line = [Span("  ")]
    for sample in _SAMPLES[quantity]:
        level = level_of(sample * scale, quantity, layer)
        text = "  " if heat.colour else load_glyph(level)
        line += [Span(text, _ROLES[level]), dim(f" {_spelled(quantity)(sample * scale)}  ")]
    return pad(line, width)


def map_cursor(
    found: RunMap, quantity: Quantity, view: RunView, layer: LayerView, column: int, width: int
) -> Line:
    """The value and the findings of the cell at the cursor; ``column``: of ``found``."""
    first = found.axis[column]
    last = found.axis[column + 1] - 1 if column + 1 < len(found.axis) else view.newest_step
    last = max(first, min(last, view.window.last))
    value = found.rows[layer.index][column]
    text = "not logged" if math.isnan(value) else _spelled(quantity)(value)
    steps = f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"
    line = [Span(f"  {layer.router.name}", "accent"), dim(f"   {steps}   {quantity} "), Span(text)]
    notes = [
        f"{finding.rule} since {episode.onset:,}"
        for finding, _ in view.findings
        for episode in finding.episodes
        if episode.router_index == layer.index
        and episode.onset <= last
        and (episode.recovered_at is None or episode.recovered_at >= first)
    ]
    return with_notes(line, notes, width)
