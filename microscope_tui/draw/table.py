"""The table of the main screen: its layout, and one layer on one row.

The load gets the room it can use (six cells per expert, more on a wide screen); the curves share
the rest. What does not fit is named, never dropped silently. A row may be several lines high; words
and numbers are on its middle line.
"""

import math
from collections.abc import Container, Sequence

import msgspec
from msgspec.structs import replace

from microscope_tui.draw import frame, words
from microscope_tui.draw.glyphs import Glyphs, bar, spark
from microscope_tui.draw.heat import (
    Heat,
    Look,
    Measure,
    Order,
    cells_of,
    heat_lines,
    heat_titles,
    is_mean,
    order_of,
)
from microscope_tui.draw.spans import (
    ROLE_OF_SEVERITY,
    WORD_OF_SEVERITY,
    Line,
    Span,
    dim,
    first_fitting,
    pad,
    row_label,
)
from microscope_tui.runlog import plural
from microscope_tui.watch import Column, LayerView, RunView

_PLAIN_HEAT = Heat()
_MAX_CELL, _WIDE_CELL = 6, 12
_MAX_HEIGHT = 8
_MAX_SPARK, _LONG_SPARK = 160, 48  # of both curves, of each
"""Cells grow beyond six only beside long curves."""
_WORDS = 24
"""Cells of the load where no layer has counts."""
_GOOD_SPARK = 8
_MIN_SPARK = 5
_GAP = 2
_OF_SCROLLED, _LEAST_SCROLLED = 3, 12
"""Lines of a scrolled table for a long verdict, and the least that remain."""
_WHOLE_VERDICT = 9  # lines that hold any
_LEAST_LOSS = 4
_LEAST_ENTROPY = 0.1
"""The least part of 0 … ln E that the curves of the entropy cover."""
_NOTED_FROM_ROWS = 14
_ROOMY_FROM_ROWS = 30
_FRAME, _ROOMY_FRAME = 6, 11
"""Lines around the body: header, verdict, heads, ribbon, keys; roomy: also blank ones and notes."""
_BAR, _BAR_FROM = 5, 110
"""Width of the bar of the drop rate, and the columns from which it is shown."""
_OF_STEPS = ("OSCILLATION", "OVERLOAD")
"""Rules that judge the load of single steps, not a sum."""
MARK = "'"
"""Of a row that shows its own step."""
FULL_DROP_BAR = 0.5
"""The drop rate that fills the bar."""


class TableLayout(msgspec.Struct, frozen=True, kw_only=True):
    """Widths of the columns in cells, and heights in lines."""

    columns: int
    """Of the whole table."""
    label: int
    """Of the names of the layers."""
    heat: int
    """Of the load of all experts."""
    cell: int
    """Cells per expert (or per group of experts)."""
    experts_per_cell: int
    """More than 1 where there is no room for each."""
    spark: int
    """Width of the curve of the balance; 0 without curves."""
    entropy_spark: int = 0
    """Width of the curve of the entropy; 0 without curves."""
    has_entropy: bool
    """Whether any layer has one, now or earlier."""
    drop: int
    """0 if nothing can be dropped."""
    drop_bar: int
    """Width of its bar; 0 if there is no room."""
    row_height: int = 1
    """Lines of one layer."""
    table_rows: int = 1
    """Lines of all layers that are in view."""
    roomy: bool = False
    """Blank lines between the parts, and a verdict of three lines."""
    noted: bool = False
    """A line of notes under the ribbon; in small windows if it has content."""
    legend: bool = False
    """The legend has its own line; without one a verdict replaces it."""
    verdict_lines: int = 2
    """Two, three in a roomy window; more for a long verdict, before the rows of layers grow."""
    compact: bool = False
    """The verdict has no line for why."""
    loss_rows: int = 0
    """Lines that no layer can use: for the course of the loss."""
    numbered: bool = False
    """A line with the numbers of the experts above the table."""
    hidden: tuple[str, ...] = ()
    """What has no room, in words, for the line of notes."""

    @property
    def curve(self) -> int:
        """Width of the column of the balance: the number, and its curve if there is room."""
        return _with_curve(self.spark)

    @property
    def entropy(self) -> int:
        """Width of the column; 0 where no layer has an entropy."""
        return _with_curve(self.entropy_spark) if self.has_entropy else 0

    @property
    def visible_layers(self) -> int:
        """At least one."""
        return max(1, self.table_rows // self.row_height)


def _with_curve(spark: int) -> int:
    """Width of a number and of its curve, if there is room for one."""
    return 5 + spark if spark else 4


def fit(
    view: RunView,
    columns: int,
    rows: int,
    *,
    shown: int | None = None,
    noted: bool = False,
    seen: Container[str] = (),
) -> TableLayout:
    """``shown``: number of layers; ``noted``: notes are needed in any case."""
    layers = max(1, len(view.layers) if shown is None else shown)
    widths = _widths(view, columns)
    roomy = rows >= _ROOMY_FROM_ROWS
    numbered = roomy and widths.cell >= 3
    body = max(1, rows - (_ROOMY_FRAME if roomy else _FRAME) - numbered)
    if roomy or rows < _NOTED_FROM_ROWS:
        noted = roomy
    else:
        noted = noted or body < layers or _is_limited(view, widths)
        if noted:
            body -= 1
    least = 3 if roomy else 2
    heights = frame.verdict_heights(view, columns, seen)
    verdict = _verdict_lines(heights, least, body, layers)
    body -= verdict - least
    height = max(1, min(_MAX_HEIGHT, body // layers))
    free = max(0, body - layers * height)  # lines that no layer can use
    legend = roomy or free > 0 or _LEAST_SCROLLED < body < layers
    if not roomy and legend:
        body, free = body - 1, free - 1
    loss_rows = free if free >= _LEAST_LOSS else 0
    body -= loss_rows
    return replace(
        widths,
        row_height=height,
        table_rows=body,
        roomy=roomy,
        noted=noted,
        legend=legend,
        verdict_lines=verdict,
        compact=not roomy and heights[-1:] != [verdict],
        loss_rows=loss_rows,
        numbered=numbered,
        hidden=_hidden(view, widths, layers - max(1, body // height)),
    )


def whole(view: RunView, columns: int) -> TableLayout:
    """Every layer on one line, in as many lines as that takes."""
    widths = _widths(view, columns)
    layers, hidden = len(view.layers), _hidden(view, widths, 0)
    return replace(widths, table_rows=layers, verdict_lines=_WHOLE_VERDICT, hidden=hidden)


def _verdict_lines(heights: Sequence[int], least: int, body: int, layers: int) -> int:
    """The highest of ``heights`` that takes no line of a layer; ``least`` if none fits."""
    spare = body - layers
    if spare < 0:  # the table is scrolled
        spare = min(_OF_SCROLLED, body - _LEAST_SCROLLED)
    return max((lines for lines in heights if least <= lines <= least + spare), default=least)


def _widths(view: RunView, columns: int) -> TableLayout:
    """The columns of words and numbers first; load and curves share what they leave."""
    label = max(8, 5 + max((len(layer.router.name) for layer in view.layers), default=2))
    drop, bar = _drop_widths(view, columns)
    has_entropy = any(_has(layer.entropy, layer.entropy_history) for layer in view.layers)
    curves = 2 if has_entropy else 1
    room = columns - 1 - label - curves * (_GAP + 4)
    if drop:
        room -= _GAP + drop
    if any(layer.load for layer in view.layers):
        experts = max(layer.router.num_experts for layer in view.layers) or 8
        cell, per_cell, spark = _share(room, experts, curves)
        heat = -(-experts // per_cell) * cell
    else:  # a column of words
        cell, per_cell, heat = 1, 1, min(_WORDS, room)
        spark = min(_MAX_SPARK // curves, (room - _WORDS) // curves - 1)
        if spark < _MIN_SPARK:
            spark = 0
    narrow = 0
    if has_entropy:  # its curve gives a third to that of the balance
        narrow = max(min(_MIN_SPARK, spark), 2 * spark // 3)
        spark = 2 * spark - narrow
    return TableLayout(
        columns=columns,
        label=label,
        heat=heat,
        cell=cell,
        experts_per_cell=per_cell,
        spark=spark,
        entropy_spark=narrow,
        has_entropy=has_entropy,
        drop=drop,
        drop_bar=bar,
    )


def _drop_widths(view: RunView, columns: int) -> tuple[int, int]:
    """Width of the column of drops and of the bar in it; 0 where nothing can be dropped."""
    if not any(_has(layer.drop_rate, layer.drop_history) for layer in view.layers):
        return 0, 0
    if columns >= _BAR_FROM:
        return _BAR + 5, _BAR
    return (8 if columns >= 72 else 4), 0


def _is_limited(view: RunView, widths: TableLayout) -> bool:
    complete = widths.spark and widths.has_entropy
    left_out = any(layer.without != () for layer in view.layers)
    noted = words.unread(view) or view.log.parts or view.log.defects or view.log.memory_limit
    return not complete or left_out or bool(noted)


def _hidden(view: RunView, widths: TableLayout, more_layers: int) -> tuple[str, ...]:
    hidden = []
    if more_layers > 0:
        hidden.append(plural(more_layers, "more layer"))
    if not widths.has_entropy and view.layers:
        hidden.append("no entropy in the log")
    if not widths.spark:
        hidden.append("no room for curves")
    if widths.experts_per_cell > 1:
        hidden.append(f"{widths.experts_per_cell} experts a cell")
    return tuple(hidden)


def _has(now: float | None, history: Sequence[Column]) -> bool:
    """Now or earlier: some logs have one every ten steps."""
    return now is not None or any(column.low == column.low for column in history)


def _share(room: int, experts: int, curves: int) -> tuple[int, int, int]:
    """Share ``room`` between load and curves: cells an expert, experts a cell, curve width."""
    for cell in range(_WIDE_CELL, 0, -1):
        spark = (room - experts * cell) // curves - 1
        least = _GOOD_SPARK if cell > 1 else _MIN_SPARK
        if cell > _MAX_CELL:
            least = _LONG_SPARK
        if spark >= least:
            return cell, 1, min(_MAX_SPARK // curves, spark)
    with_curves = room - curves * (_MIN_SPARK + 1)
    if with_curves >= 16:
        per_cell = -(-experts // with_curves)
        spark = (room - -(-experts // per_cell)) // curves - 1
        return 1, per_cell, min(_MAX_SPARK // curves, spark)
    return 1, -(-experts // max(1, room)), 0


def of_one_step(view: RunView, look: Look, steps: int) -> set[int]:
    """The layers that show their own step, because a mean hides what is found."""
    found = [f for f, _ in view.alerts if f.rule in _OF_STEPS and is_mean(look, steps)]
    episodes = [e for f in found for e in f.episodes if e.active]
    return {e.router_index for e in episodes if e.reason is None}  # a rank is judged by sums


def label(layer: LayerView, layout: TableLayout, selected: bool, mark: str = " ") -> list[Line]:
    """The column of the name; ``mark``: ``MARK`` where the row shows its own step."""
    name, width = layer.router.name, layout.label - 1
    line = row_label(name, layer.severity, width, chosen=selected)
    return _tall([*line, Span(mark, "accent")], layout.label, layout)


def load(
    layer: LayerView, layout: TableLayout, heat: Heat, chosen: int | None = None
) -> list[Line]:
    """The column of the load, or why there is none; ``chosen``: the expert of the cursor."""
    values = cells_of(layer, heat)
    if isinstance(values, str):
        texts = [values]
        if not layer.load and layer.max_load is not None:
            texts.insert(0, f"{values}, max load {words.decimal(layer.max_load)}")
        return _tall([Span(first_fitting(texts, layout.heat, "-"), "faint")], layout.heat, layout)
    cell, at = layout.cell, None
    if heat.look.measure is Measure.RANKS:
        cell = max(1, layout.heat // len(values))
    elif chosen is not None and chosen < len(values):
        at = list(order_of(layer, heat.look.order)).index(chosen)
    key = (layer.index, heat.look.measure, heat.look.order)
    height = layout.row_height
    lines = heat_lines(key, values, heat, layout.heat // cell, cell, height=height, chosen=at)
    return [pad(line, layout.heat) for line in lines]


def balance(
    layer: LayerView, layout: TableLayout, glyphs: Glyphs, cursor: float | None = None
) -> list[Line]:
    """The column of the balance c; the curve is faint from ``cursor`` on, a share of its width."""
    role = ROLE_OF_SEVERITY[layer.severity] if layer.severity else "value"
    number = Span(words.index(layer.balance), role)
    if layer.without != ():  # the line of notes explains the mark
        number = Span(f"*{number.text[:3]}", number.role)
    nothing = words.no_balance(layer)[0]
    room = layout.curve, layout.spark
    return _curve(number, layer.balance_history, (0.0, 1.0), nothing, layout, glyphs, cursor, room)


def entropy(
    layer: LayerView,
    layout: TableLayout,
    glyphs: Glyphs,
    cursor: float | None = None,
    ends: tuple[float, float] | None = None,
) -> list[Line]:
    """Token entropy in nats, its curve between the ``ends`` of the run: not flat at the top.

    Noise fills at most a tenth of 0 … ln E.
    """
    number = Span(words.decimal(layer.entropy))
    most = words.most_entropy(layer)
    bottom, top = ends or (0.0, most)
    if top - bottom < _LEAST_ENTROPY * most:
        bottom = max(0.0, min(bottom, most * (1 - _LEAST_ENTROPY)))
        top = bottom + _LEAST_ENTROPY * most
    history, room = layer.entropy_history, (layout.entropy, layout.entropy_spark)
    return _curve(number, history, (bottom, top), "not logged", layout, glyphs, cursor, room)


def drop(layer: LayerView, layout: TableLayout, glyphs: Glyphs) -> list[Line]:
    """The column of dropped assignments, which has no curve."""
    rate = layer.drop_rate
    role = "crit"
    if rate is None or rate < 0.02:
        role = "faint"
    elif rate <= 0.2:
        role = "warn"
    parts: Line = []
    if layout.drop_bar:
        share = rate / FULL_DROP_BAR if rate is not None and math.isfinite(rate) else 0.0
        parts = [Span(bar(share, layout.drop_bar, glyphs), role), Span(" ")]
    number_role = "faint" if rate is not None and rate < 0.02 else "value"
    return _tall([*parts, Span(words.percent(rate).rjust(4), number_role)], layout.drop, layout)


def _curve(
    number: Span,
    history: Sequence[Column],
    ends: tuple[float, float],
    nothing: str,
    layout: TableLayout,
    glyphs: Glyphs,
    cursor: float | None,
    room: tuple[int, int],
) -> list[Line]:
    """The number, and its history between ``ends`` if there is room; faint after ``cursor``.

    ``nothing``: why it may be empty; ``room``: cells of the column, and of the curve in it.
    """
    height = layout.row_height
    column, width = room
    if not number.text.strip("*") and all(column.mean != column.mean for column in history):
        text = first_fitting([nothing], column, "   -")
        return _tall([Span(text, "faint")], column, layout)
    if not width:
        return _tall([Span(number.text.rjust(4), number.role)], 4, layout)
    role = "curve" if number.role == "value" else number.role
    # From three lines on, the last stays blank, to separate the curves of neighbours.
    blank = [" " * width] if height >= 3 else []
    curve = spark(history, width, ends, glyphs, height - len(blank)) + blank
    past = width if cursor is None else math.ceil(cursor * width)
    numbers = [""] * height
    numbers[(height - 1) // 2] = number.text
    return [
        [Span(text[:past], role), Span(text[past:], "faint"), Span(f" {here:>4}", number.role)]
        for here, text in zip(numbers, curve, strict=True)
    ]


def _tall(line: Line, width: int, layout: TableLayout) -> list[Line]:
    lines = [pad([], width) for _ in range(layout.row_height)]
    lines[(layout.row_height - 1) // 2] = pad(line, width)
    return lines


def loss_curve(view: RunView, layout: TableLayout, glyphs: Glyphs) -> list[Line]:
    """The course of the loss between its lowest and highest value, below a blank line."""
    rows, width = layout.loss_rows - 1, layout.columns - layout.label - 1
    means = [column.mean for column in view.timeline.loss_history if math.isfinite(column.mean)]
    if not means:
        return [[] for _ in range(layout.loss_rows)]
    bottom, top = min(means), max(means)
    curve = spark(view.timeline.loss_history, width, (bottom, top), glyphs, rows)
    heads = {0: words.decimal(top), rows // 2: "loss", rows - 1: words.decimal(bottom)}
    lines: list[Line] = [[]]
    for at, line in enumerate(curve):
        lines.append([dim(f"{heads.get(at, ''):>{layout.label - 1}} "), Span(line, "curve")])
    return lines


def column_heads(
    view: RunView, layout: TableLayout, heat: Heat = _PLAIN_HEAT, steps: int = 1, own: bool = False
) -> Line:
    """``steps``: of the mean loads; ``own``: but not in all rows, see ``of_one_step``."""
    experts = max((layer.router.num_experts for layer in view.layers), default=0)
    titles = heat_titles(heat, experts, layout.experts_per_cell, steps)
    if is_mean(heat.look, steps):  # a mean must not look like a single step
        mean = f"mean of {steps}"
        titles += [f"{mean} steps", mean, f"{steps} steps"]
        if own:
            means = [text for text in titles if "mean" in text]
            titles = [f"{text}, {MARK} {one}" for one in ("this step", "1") for text in means]
    balance_head = "balance c" if layout.curve >= 12 else "bal."
    entropy_head = "entropy H" if layout.entropy >= 9 else "ent."
    drop_head = "drop" if layout.drop < 8 else "dropped"
    if not view.layers:
        return pad([], layout.columns)
    line = pad([dim("  layer")], layout.label)
    for head, width, gap in (
        (first_fitting(titles, layout.heat, titles[-1]), layout.heat, 0),
        (balance_head, layout.curve, _GAP),
        (entropy_head, layout.entropy, _GAP),
        (drop_head, layout.drop, _GAP),
    ):
        if width:
            line += [Span(" " * gap), *pad([dim(head)], width)]
    return line


def expert_numbers(view: RunView, layout: TableLayout, heat: Heat) -> Line:
    """The number of every expert above its cells, if they are ordered by number."""
    if heat.look.order is not Order.ID or heat.look.measure is Measure.RANKS:
        return pad([], layout.columns)
    experts = max((layer.router.num_experts for layer in view.layers), default=0)
    numbers = "".join(str(expert).center(layout.cell) for expert in range(experts))
    return pad([Span(" " * layout.label), Span(numbers, "faint")], layout.columns)


def matching(view: RunView, pattern: str) -> Sequence[int]:
    """Indices of the layers whose name or alert matches."""
    if not pattern:
        return range(len(view.layers))
    troubles: dict[int, list[str]] = {}  # names and severities, as the alerts screen has them
    for finding, _ in view.findings:
        for episode in finding.episodes:
            if episode.active:
                names = troubles.setdefault(episode.router_index, [])
                names += [finding.rule, WORD_OF_SEVERITY[episode.severity]]
    return [
        layer.index
        for layer in view.layers
        if words.matches(
            pattern, " ".join([layer.router.name, *troubles.get(layer.index, ("healthy",))])
        )
    ]


def expert_line(view: RunView, layer_index: int, expert: int | None, heat: Heat) -> str:
    """Empty where none is chosen."""
    if expert is None or layer_index >= len(view.layers):
        return ""
    layer = view.layers[layer_index]
    name = f"{layer.router.name} expert {expert}"
    if not layer.load or not layer.counts or expert >= len(layer.load):
        return f"{name}: {words.no_counts(view)}"
    share, of_all = words.part_of(view, layer, expert)
    shares = view.run is not None and view.run.counts == "shares"
    part = f"{share:.1%}" if shares else f"{layer.counts[expert]:,}"
    parts = [f"{name}: load {layer.load[expert]:.3g}", f"{part} {of_all}"]
    if layer.bias and expert < len(layer.bias):
        parts.append(f"bias {layer.bias[expert]:+.4g}")
    then, reference = heat.reference_load(layer), heat.reference
    if then is not None and reference is not None:
        parts.append(f"load {then[expert]:.3g} at step {reference.step:,}")
    return ", ".join(parts)


def first_visible(visible: int, selected: int, first: int, count: int) -> int:
    """Where ``visible`` rows of ``count`` begin: as near to ``first`` as the chosen one allows."""
    first = max(min(first, selected), selected - visible + 1)
    return max(0, min(first, count - visible))
