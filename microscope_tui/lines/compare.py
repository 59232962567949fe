"""Two steps side by side: what changed in every layer from A, the reference, to B.

Numbers show how uneven a layer is; the rank correlation shows whether the same experts are busy.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from microscope_tui.diagnosis import value_at
from microscope_tui.lines import words
from microscope_tui.lines.glyphs import CALM_FROM, CALM_TO, Glyphs
from microscope_tui.lines.heat import Heat, heat_line, values_of
from microscope_tui.lines.spans import (
    ROLE_OF_SEVERITY,
    Line,
    Span,
    line_width,
    pad,
    shortened,
    width_of,
)
from microscope_tui.measures import rank_correlation
from microscope_tui.runlog import RouterInfo, StepRecord
from microscope_tui.watch import LayerView, Reference, RunView, balance_now

_MOMENT_MARK, _MOMENT_GAP = 4, 3
_MOST_NAME = 32
_MOMENT_WIDE = 72


def moment_lines(
    view: RunView, reference: Reference, columns: int, remarks: tuple[Span, Span], *, brief: bool
) -> list[Line]:
    """A, B and the change from A to B, under their heads; A and B alone if ``brief``.

    Args:
        remarks: what is to be said of A and of B.
    """
    then, now = reference.record, view.record or reference.record
    heads = ("step", "loss", "lr", "tokens")[: 4 if columns >= _MOMENT_WIDE else 2]
    rows = [_values(then)[: len(heads)], _values(now)[: len(heads)]]
    change = _changes(then, now)[: len(heads)]
    widths = [max(5, *map(len, column)) for column in zip(heads, *rows, change, strict=True)]
    fixed = _MOMENT_MARK + sum(_MOMENT_GAP + width for width in widths)
    longest = max(width_of(reference.run), width_of(view.name), 6)
    name = max(8, min(longest, _MOST_NAME, columns - fixed - 12))

    def line(mark: str, of: str, values: Sequence[str], role: str, *remark: Span) -> Line:
        cells: Line = [Span(f" {mark:<{_MOMENT_MARK - 1}}", "accent")]
        cells += pad([Span(shortened(of, name), role)], name)
        for value, width in zip(values, widths, strict=True):
            cells += [Span(" " * _MOMENT_GAP), *pad([Span(value, role)], width, "right")]
        return pad([*cells, Span(" " * _MOMENT_GAP), *remark], columns)

    both = [
        line("A", reference.run, rows[0], "value", remarks[0]),
        line("B", view.name, rows[1], "value", remarks[1]),
    ]
    if brief:
        return both
    return [line("", "run", heads, "dim"), *both, line("", "change", change, "dim")]


def _values(record: StepRecord) -> list[str]:
    return [
        f"{record.step:,}",
        words.decimal(record.loss) or "-",
        "-" if record.learning_rate is None else f"{record.learning_rate:.3g}",
        words.short_number(record.tokens),
    ]


def _changes(then: StepRecord, now: StepRecord) -> list[str]:
    """The change."""
    return [
        _difference(then.step, now.step, lambda x: f"{x:+,}"),
        _difference(then.loss, now.loss, lambda x: f"{x:+.2f}"),
        _difference(then.learning_rate, now.learning_rate, lambda x: f"{x:+.2g}"),
        _difference(then.tokens, now.tokens, _more_tokens),
    ]


def _more_tokens(tokens: float) -> str:
    return f"{'+' if tokens > 0 else '-'}{words.short_number(abs(tokens))}"


def _difference(then: float | None, now: float | None, say: Callable[[float], str]) -> str:
    if then is None or now is None or not math.isfinite(now - then):
        return "-"
    return say(now - then) if now != then else "same"


_GAP = 2
_NUMBER, _CHANGE, _ARROW, _RANKS, _RANKS_IN_FULL = 4, 5, 3, 5, 10
_WIDE = 110
_MAX_CELL, _MAX_HEIGHT = 16, 8
_LEAST_HEAT = 24
_SLIGHT, _MUCH = 0.05, 0.20  # of the collapse index
_MORE, _FAR_MORE = 1.25, 2.0  # times the largest load


@dataclass(frozen=True, slots=True)
class CompareLayout:
    """Widths in cells; 0 for a column that is left out."""

    columns: int
    label: int
    balance: int
    entropy: int
    max_load: int
    ranks: int
    heat: int
    cell: int
    experts_per_cell: int
    row_height: int
    visible_layers: int

    @property
    def hidden(self) -> str:
        """What was left out for lack of room, in words."""
        parts = (("entropy", self.entropy), ("max load", self.max_load), ("order", self.ranks))
        left_out = [word for word, width in parts if not width]
        return f"no room for {', '.join(left_out)}" if left_out else ""


def why_apart(layer: LayerView, reference: Reference) -> str | None:
    """Why the experts of a layer cannot be compared; ``None`` where they can."""
    router, index = router_in(reference, layer), layer.index
    if router is None:
        return f"no {layer.router.name} in A"
    if router.num_experts != layer.router.num_experts:
        return f"{router.num_experts:,} experts in A, {layer.router.num_experts:,} in B"
    if not layer.load:
        return "no counts in B"
    return None if reference.load_of(index, len(layer.load)) is not None else "no counts in A"


def router_in(reference: Reference, layer: LayerView) -> RouterInfo | None:
    """The router of A at the place of ``layer`` in B."""
    if not reference.routers:
        return layer.router
    return reference.routers[layer.index] if layer.index < len(reference.routers) else None


def only_in_reference(view: RunView, reference: Reference) -> str:
    """Which layers of A the shown run does not have, in words."""
    rest = reference.routers[len(view.layers) :]
    names = [router.name for router in rest if router is not None]
    return f"only in A: {words.listed(names)}" if names else ""


def fit_compare(
    view: RunView, reference: Reference, columns: int, rows: int, shown: int
) -> CompareLayout:
    """Column widths and row height; entropy is left out first, then max load, then ranks."""
    names = max((len(layer.router.name) for layer in view.layers), default=2)
    label = min(max(8, 2 + names + 3), columns // 3)
    experts = max((layer.router.num_experts for layer in view.layers), default=1) or 1
    pair = 2 * _NUMBER + _ARROW
    wide = pair + 1 + _CHANGE
    loads = [layer.max_load for layer in view.layers] + list(reference.record.router.max_load or ())
    peak = 2 * max([_NUMBER, *(len(words.decimal(load)) for load in loads)]) + _ARROW
    in_full = _RANKS_IN_FULL if columns >= _WIDE else _RANKS
    for entropy, max_load, ranks in (
        (pair, peak, in_full),
        (0, peak, in_full),
        (0, 0, in_full),
        (0, 0, 0),
    ):
        used = sum(_GAP + width for width in (wide, entropy, max_load, ranks) if width)
        room = columns - label - used - _GAP
        if room >= min(_LEAST_HEAT, experts):
            break
    room = max(1, room)
    per_cell = -(-experts // room)
    cells = -(-experts // per_cell)
    height = max(1, min(_MAX_HEIGHT, rows // max(1, shown)))
    cell = min(_MAX_CELL, max(1, room // cells))
    return CompareLayout(
        *(columns, label, wide, entropy, max_load, ranks, cells * cell, cell, per_cell, height),
        visible_layers=max(1, rows // height),
    )


def heads(layout: CompareLayout) -> Line:
    """The names of the columns."""
    parts = (
        ("balance c", layout.balance),
        ("entropy H", layout.entropy),
        ("max load", layout.max_load),
        ("same order" if layout.ranks >= _RANKS_IN_FULL else "order", layout.ranks),
    )
    line = pad([Span("  layer", "dim")], layout.label)
    for text, width in parts:
        if width:
            align = "right" if "order" in text else "left"
            line += [Span(" " * _GAP), *pad([Span(text, "dim")], width, align)]
    line.append(Span(" " * _GAP))
    per, room = layout.experts_per_cell, layout.columns - line_width(line)
    heat = ["load, B against A", "B against A", "B / A"]
    if per > 1:
        heat = [f"load, B against A, {per} experts a cell", f"B against A, {per} a cell", *heat]
    shown = next((text for text in heat if len(text) <= room), "")
    return pad([*line, Span(shown, "dim")], layout.columns)


def layer_lines(
    layer: LayerView,
    reference: Reference,
    layout: CompareLayout,
    heat: Heat,
    glyphs: Glyphs,
    *,
    chosen: bool,
) -> list[Line]:
    """One layer: ``row_height`` lines, with the numbers on the middle one."""
    middle = (layout.row_height - 1) // 2
    numbers = _numbers(layer, reference, layout, glyphs, chosen)
    blank = pad([], sum(len(span.text) for span in numbers))
    why = why_apart(layer, reference)
    room = layout.columns - len(blank[-1].text)
    lines = []
    for at in range(layout.row_height):
        if why:
            cells: Line = [Span(why, "dim")] if at == middle else []
        else:
            values = values_of(layer, heat.look, heat.terms)
            count, key = layout.heat // layout.cell, ("compare", layer.index)
            cells = heat_line(key, values, heat, count, layout.cell, marked=at == middle)
        lines.append([*(numbers if at == middle else blank), *pad(cells, room)])
    return lines


def moved_text(layer: LayerView, reference: Reference, room: int) -> str:
    """The experts of a layer that gained and lost the most, as far as they fit."""
    name, why = layer.router.name, why_apart(layer, reference)
    then = reference.load_of(layer.index, layer.router.num_experts)
    if why or then is None or layer.load is None:
        return f"{name}: {why}"
    now = layer.load
    ratios = {e: (now[e] / then[e] if then[e] else math.inf) for e in range(len(now)) if now[e]}
    up = sorted((e for e in ratios if ratios[e] > 2.0**CALM_TO), key=lambda e: -now[e])
    down = sorted((e for e in ratios if ratios[e] < 2.0**CALM_FROM), key=lambda e: ratios[e])
    dead = [e for e in range(len(now)) if not now[e] and then[e]]
    said = []
    if up:
        said.append("up " + words.listed([f"{e} ({then[e]:.2g} to {now[e]:.2g})" for e in up], 2))
    if down:
        said.append("down " + words.listed([str(e) for e in down]))
    if dead:
        said.append("without tokens now " + words.listed([str(e) for e in dead]))
    if not said:
        return f"{name}: no expert changed its load"
    while len(said) > 1 and len(f"{name}: {'; '.join(said)}") > room:
        said.pop()
    return f"{name}: {'; '.join(said)}"


def _numbers(
    layer: LayerView, reference: Reference, layout: CompareLayout, glyphs: Glyphs, chosen: bool
) -> Line:
    """The part of a layer's row left of its heatmap."""
    record, index = reference.record.router, layer.index
    router = router_in(reference, layer)
    balance = None
    if router is not None:
        balance, _ = balance_now(record, index, router)
    name = shortened(layer.router.name, layout.label - 5)
    severity = layer.severity
    line: Line = [
        Span("▶ " if chosen else "  ", "accent"),
        *pad([Span(name, "value" if chosen or severity else "dim")], layout.label - 4),
        Span(severity.letter if severity else " ", ROLE_OF_SEVERITY[severity] if severity else ""),
        Span(" "),
        Span(" " * _GAP),
        *_pair(words.index(balance), words.index(layer.collapse_index), _NUMBER, "value", glyphs),
        Span(" "),
        *pad([_change(balance, layer.collapse_index)], _CHANGE, "right"),
    ]
    if layout.entropy:
        then = words.decimal(value_at(record.entropy, index))
        now = words.decimal(layer.entropy)
        line += [Span(" " * _GAP), *_pair(then, now, _NUMBER, "value", glyphs)]
    if layout.max_load:
        peak = value_at(record.max_load, index)
        width = (layout.max_load - _ARROW) // 2
        role = _peak_role(peak, layer.max_load)
        then, now = words.decimal(peak), words.decimal(layer.max_load)
        line += [Span(" " * _GAP), *_pair(then, now, width, role, glyphs)]
    if layout.ranks:
        line += [Span(" " * _GAP), *pad([_rank_span(layer, reference)], layout.ranks, "right")]
    return [*line, Span(" " * _GAP)]


def _pair(then: str, now: str, width: int, role: str, glyphs: Glyphs) -> Line:
    arrow = " > " if glyphs is Glyphs.ASCII else " → "
    return [
        *pad([Span(then or "-", "dim")], width, "right"),
        Span(arrow, "faint"),
        *pad([Span(now or "-", role)], width, "right"),
    ]


def _change(then: float | None, now: float | None) -> Span:
    """The change of the collapse index: up is better."""
    if then is None or now is None:
        return Span("")
    change = now - then
    if abs(change) < 0.005:
        return Span("·", "faint")
    text = f"{change:+.2f}".replace("0.", ".", 1)
    if abs(change) < _SLIGHT:
        return Span(text, "dim")
    return Span(text, "ok" if change > 0 else "warn" if change > -_MUCH else "crit")


def _peak_role(then: float | None, now: float | None) -> str:
    """The colour of the largest load: more is worse."""
    if not then or not now:
        return "value"
    ratio = now / then
    if ratio > _FAR_MORE:
        return "crit"
    return "warn" if ratio > _MORE else "ok" if ratio < 1 / _MORE else "value"


def _rank_span(layer: LayerView, reference: Reference) -> Span:
    then = reference.load_of(layer.index, layer.router.num_experts)
    if then is None or not layer.load:
        return Span("-", "faint")
    value = rank_correlation(then, layer.load)
    return Span("-", "faint") if math.isnan(value) else Span(f"{value:.2f}".replace("0.", "."))
