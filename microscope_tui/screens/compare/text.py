"""Two steps side by side: what changed in every layer from A, the reference, to B."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from microscope_tui.diagnosis import value_at
from microscope_tui.draw import words
from microscope_tui.draw.columns import Column, Table
from microscope_tui.draw.glyphs import CALM_FROM, CALM_TO
from microscope_tui.draw.heat import Heat, cells_of, heat_lines
from microscope_tui.draw.spans import (
    Line,
    Span,
    dim,
    first_fitting,
    pad,
    row_label,
    shortened,
    width_of,
)
from microscope_tui.runlog import RouterInfo, StepRecord
from microscope_tui.watch import LayerView, Reference, RunView, balance_now
from microscope_tui.watch.scan import BalanceNow

_NUMBER, _CHANGE, _ARROW = 4, 5, 3
_ALL_NUMBERS = 72
_MOST_NAME = 32
_MAX_CELL, _MAX_HEIGHT = 16, 8
_LEAST_HEAT = 24
_SLIGHT, _MUCH = 0.05, 0.20  # of the collapse index
_MORE, _FAR_MORE = 1.25, 2.0  # times the largest load


def moment_lines(
    view: RunView, reference: Reference, columns: int, remarks: tuple[Span, Span], *, brief: bool
) -> list[Line]:
    """A, B and the change, with two remarks; under heads, unless ``brief``."""
    then, now = reference.record, view.record or reference.record
    rows = [_values(then), _values(now), _changes(then, now)]
    names = list(rows[0])
    if columns < _ALL_NUMBERS:
        names = names[:2]
    numbers = [
        Column(name, max(5, len(name), *(len(row[name]) for row in rows)), "right", gap=3)
        for name in names
    ]
    longest = max(width_of(reference.run), width_of(view.name), 6)
    room = columns - 4 - sum(number.gap + number.width for number in numbers) - 12
    name = Column("run", max(8, min(longest, _MOST_NAME, room)), gap=0)
    remark = Column("remark", columns, gap=3, head="")
    table = Table([Column("", 4, gap=0), name, *numbers, remark], columns)

    def line(mark: str, of: str, values: Mapping[str, str], role: str, *remarks: Span) -> Line:
        cells = {key: [Span(value, role)] for key, value in values.items()}
        cells |= {
            "": [Span(f" {mark:<3}", "accent")],
            "run": [Span(shortened(of, name.width), role)],
        }
        return table.line({**cells, "remark": remarks})

    both = [
        line("A", reference.run, rows[0], "value", remarks[0]),
        line("B", view.name, rows[1], "value", remarks[1]),
    ]
    if brief:
        return both
    return [table.heads(), *both, line("", "change", rows[2], "dim")]


def _values(record: StepRecord) -> Mapping[str, str]:
    return {
        "step": f"{record.step:,}",
        "loss": words.decimal(record.loss) or "-",
        "lr": "-" if record.learning_rate is None else f"{record.learning_rate:.3g}",
        "tokens": words.short_number(record.tokens),
    }


def _changes(then: StepRecord, now: StepRecord) -> Mapping[str, str]:
    def tokens(more: float) -> str:
        sign = "+" if more > 0 else "-"
        return f"{sign}{words.short_number(abs(more))}"

    return {
        "step": _difference(then.step, now.step, "{:+,}".format),
        "loss": _difference(then.loss, now.loss, "{:+.2f}".format),
        "lr": _difference(then.learning_rate, now.learning_rate, "{:+.2g}".format),
        "tokens": _difference(then.tokens, now.tokens, tokens),
    }


def _difference(then: float | None, now: float | None, spell: Callable[[float], str]) -> str:
    if then is None or now is None or not math.isfinite(now - then):
        return "-"
    if now == then:
        return "same"
    return spell(now - then)


@dataclass(frozen=True, slots=True)
class CompareLayout:
    table: Table
    """Its last column is the load."""
    cells: int
    """Cells of the load of one layer."""
    cell: int
    """Cells of one expert, or of a group of experts."""
    row_height: int
    """Lines of one layer."""
    visible_layers: int


def why_not_comparable(layer: LayerView, reference: Reference) -> str | None:
    """``None`` if the experts can be compared."""
    router, index = router_in(reference, layer), layer.index
    if router is None:
        return f"no {layer.router.name} in A"
    if router.num_experts != layer.router.num_experts:
        return f"{router.num_experts:,} experts in A, {layer.router.num_experts:,} in B"
    if not layer.load:
        return "no counts in B"
    if reference.load_of(index, len(layer.load)) is None:
        return "no counts in A"
    return None


def router_in(reference: Reference, layer: LayerView) -> RouterInfo | None:
    """The router of the reference beside ``layer``; ``None`` if it has none."""
    if not reference.routers:
        return layer.router
    if layer.index >= len(reference.routers):
        return None
    return reference.routers[layer.index]


def only_in_reference(view: RunView, reference: Reference) -> str:
    """Routers that only the other run has, in words; empty if none."""
    rest = reference.routers[len(view.layers) :]
    names = [router.name for router in rest if router is not None]
    return f"only in A: {words.listed(names)}" if names else ""


def fit_compare(
    view: RunView, reference: Reference, columns: int, rows: int, shown: int
) -> CompareLayout:
    """Entropy is left out first, then max load."""
    names = max((len(layer.router.name) for layer in view.layers), default=2)
    label = min(max(8, 2 + names + 3), columns // 3)
    experts = max((layer.router.num_experts for layer in view.layers), default=1) or 1
    pair = 2 * _NUMBER + _ARROW
    loads = [layer.max_load for layer in view.layers] + list(reference.record.router.max_load or ())
    peak = 2 * max([_NUMBER, *(len(words.decimal(load)) for load in loads)]) + _ARROW
    table = Table.fitting(
        [
            Column("layer", label, gap=0, head="  layer"),
            Column("balance", pair + 1 + _CHANGE, head="balance c"),
            Column("entropy", pair, priority=1, head="entropy H"),
            Column("max load", peak, priority=2),
            Column("load", min(_LEAST_HEAT, experts)),
        ],
        columns,
    )
    room = max(1, columns - table.used("load") - 2)
    per = -(-experts // room)
    cells = -(-experts // per)
    cell = min(_MAX_CELL, max(1, room // cells))
    load = ["load, B against A", "B against A", "B / A"]
    if per > 1:
        full = f"load, B against A, {per} experts a cell"
        halves = f"{full}: highest above, lowest below"
        load = [halves, full, f"B against A, {per} a cell", *load]
    last = Column("load", room, head=first_fitting(load, room))
    height = max(1, min(_MAX_HEIGHT, rows // max(1, shown)))
    table = Table([*table.columns[:-1], last], columns, table.left_out)
    return CompareLayout(table, cells, cell, height, max(1, rows // height))


def layer_lines(
    layer: LayerView, reference: Reference, layout: CompareLayout, heat: Heat, *, chosen: bool
) -> list[Line]:
    """One layer: its numbers at both steps, and the change of the load of every expert."""
    numbers = _numbers(layer, reference, layout, chosen)
    key = ("compare", layer.index)
    values = why_not_comparable(layer, reference) or cells_of(layer, heat)
    height = layout.row_height
    middle = (height - 1) // 2
    loads: list[Line] = [[] for _ in range(height)]
    if isinstance(values, str):
        loads[middle] = [dim(values)]
    else:
        loads = heat_lines(key, values, heat, layout.cells, layout.cell, height=height)
    lines = [layout.table.line({"load": load}) for load in loads]
    lines[middle] = layout.table.line({**numbers, "load": loads[middle]})
    return lines


def moved_text(layer: LayerView, reference: Reference, room: int) -> str:
    """Which experts changed their load since the reference, or why that is not known.

    ``room``: cells; the last parts are dropped first.
    """
    name = f"{layer.router.name}: "
    then = reference.load_of(layer.index, layer.router.num_experts)
    why = why_not_comparable(layer, reference)
    if why or then is None or layer.load is None:
        return f"{name}{why}"
    parts = _moved(then, layer.load) or ["no expert changed its load"]
    while len(parts) > 1 and len(name + "; ".join(parts)) > room:
        parts.pop()
    return name + "; ".join(parts)


def _moved(then: Sequence[float], now: Sequence[float]) -> list[str]:
    alive = [expert for expert, load in enumerate(now) if load]
    ratios = dict.fromkeys(alive, math.inf)
    ratios |= {e: now[e] / then[e] for e in alive if then[e]}
    up = sorted((e for e in alive if ratios[e] > 2.0**CALM_TO), key=lambda e: -now[e])
    down = sorted((e for e in alive if ratios[e] < 2.0**CALM_FROM), key=lambda e: ratios[e])
    dead = [expert for expert, load in enumerate(now) if not load and then[expert]]
    more = [f"{e} ({then[e]:.2g} to {now[e]:.2g})" for e in up]
    return [
        f"{word} {words.listed(experts, most)}"
        for word, experts, most in (
            ("up", more, 2),
            ("down", down, 3),
            ("without tokens now", dead, 3),
        )
        if experts
    ]


def _numbers(
    layer: LayerView, reference: Reference, layout: CompareLayout, chosen: bool
) -> Mapping[str, Sequence[Span]]:
    record, index = reference.record.router, layer.index
    router = router_in(reference, layer)
    before = BalanceNow(None, None, ())
    if router:
        before = balance_now(record, index, router)
    peak = value_at(record.max_load, index)
    table = layout.table
    label = table.width_of("layer")
    wide = (table.width_of("max load") - _ARROW) // 2
    pair = _pair(words.index(before.balance), words.index(layer.balance), _NUMBER)
    role = _change(before.judged, layer.judged_balance).role
    change = pad([Span(_change(before.balance, layer.balance).text, role)], _CHANGE, "right")
    entropy = words.decimal(value_at(record.entropy, index)), words.decimal(layer.entropy)
    loads = words.decimal(peak), words.decimal(layer.max_load)
    return {
        "layer": row_label(layer.router.name, layer.severity, label - 1, chosen=chosen),
        "balance": [*pair, Span(" "), *change],
        "entropy": _pair(*entropy, _NUMBER),
        "max load": _pair(*loads, wide, _peak_role(peak, layer.max_load)),
    }


def _pair(then: str, now: str, width: int, role: str = "value") -> Line:
    return [
        *pad([dim(then or "-")], width, "right"),
        Span(" → ", "faint"),
        *pad([Span(now or "-", role)], width, "right"),
    ]


def _change(then: float | None, now: float | None) -> Span:
    if then is None or now is None:
        return Span("")
    change = now - then
    if abs(change) < 0.005:
        return Span("·", "faint")
    role = "crit"
    if abs(change) < _SLIGHT:
        role = "dim"
    elif change > 0:
        role = "ok"
    elif change > -_MUCH:
        role = "warn"
    return Span(words.no_zero(f"{change:+.2f}"), role)


def _peak_role(then: float | None, now: float | None) -> str:
    if not then or not now:
        return "value"
    ratio = now / then
    if ratio > _FAR_MORE:
        return "crit"
    if ratio > _MORE:
        return "warn"
    return "ok" if ratio < 1 / _MORE else "value"
