"""Layout of the table of routers: widths, and what is left out.

The load gets the room it can use (six cells per expert, more on a wide screen); the curves share
the rest. What does not fit is named, never dropped silently.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from microscope_tui.watch import RunView

MIN_COLUMNS, MIN_ROWS = 40, 10
_MAX_CELL, _WIDE_CELL = 6, 12
_MAX_HEIGHT = 8
_MAX_SPARK, _LONG_SPARK = 72, 48
"""Cells grow beyond six only while the curves beside them are long."""
_GOOD_SPARK = 8
_MIN_SPARK = 5
_GAP = 2
_NOTED_FROM_ROWS = 14


@dataclass(frozen=True, slots=True)
class TableLayout:
    """Widths in cells, heights in lines."""

    columns: int
    rows: int
    label: int
    heat: int
    """Width of the load column."""
    cell: int
    """Cells per expert (or per group of experts)."""
    experts_per_cell: int
    spark: int
    """Width of each curve; 0 when curves are left out."""
    drop: int
    """Width of the drop column."""
    drop_bar: int
    """Width of its bar; 0 if nothing can be dropped or there is no room."""
    row_height: int
    table_rows: int
    """Lines for the table's body."""
    roomy: bool
    """Blank lines between the parts, and a verdict of three lines."""
    noted: bool
    """Whether there is a line of notes under the ribbon; in small windows only if it has content.
    """
    legend: bool
    """Whether the legend has its own line; without one a verdict replaces it."""
    verdict_lines: int
    """Two; three where there is room; up to five where no layer uses the lines."""
    numbered: bool
    """Whether expert numbers are shown above the cells."""
    hidden: tuple[str, ...]
    """What was left out for lack of room."""

    @property
    def visible_layers(self) -> int:
        """Number of layers that fit the body."""
        return max(1, self.table_rows // self.row_height)


def fit(
    view: RunView, columns: int, rows: int, *, shown: int | None = None, noted: bool = False
) -> TableLayout:
    """Lay out ``view`` in ``columns`` × ``rows`` cells.

    Args:
        shown: how many layers are to be shown; all of them by default.
        noted: there is something to say under the ribbon, whatever else there is.
    """
    experts = max((layer.router.num_experts for layer in view.layers), default=8) or 8
    layers = max(1, len(view.layers) if shown is None else shown)
    names = max((len(layer.router.name) for layer in view.layers), default=2)
    label = max(8, 2 + names + 3)
    # Header, verdict, column heads, ribbon and keys; blank lines between them where there is room.
    roomy = rows >= 30
    has_drops = any(layer.drop_rate is not None for layer in view.layers)
    bar = 5 if columns >= 110 and has_drops else 0
    drop = bar + 5 if bar else 8 if columns >= 72 else 4
    room = columns - 1 - label - (_GAP + 4 + _GAP + 4 + _GAP + drop)
    cell, per_cell, spark = _share(room, experts)
    numbered = roomy and cell >= 3
    fixed = (1 + 1 + 3 + 1 + 1 + numbered + 1 + 2 + 1) if roomy else (1 + 2 + 1 + 1 + 1)
    body = max(1, rows - fixed)
    if roomy or rows < _NOTED_FROM_ROWS:
        noted = roomy
    else:
        noted = bool(noted or body < layers or not spark or view.defects or view.memory_limit)
        body -= noted
    height = max(1, min(_MAX_HEIGHT, body // layers))
    free = max(0, body - layers * height)  # lines that no layer would use
    if roomy and not view.worst:
        free = 0
    legend, verdict_lines = roomy or free >= 1, 3 + min(free, 2) if roomy else 2 + (free >= 2)
    body -= min(free, 2)
    hidden = []
    if (more := layers - max(1, body // height)) > 0:
        hidden.append(f"{more} more layer{'s' if more > 1 else ''}")
    if not spark:
        hidden.append("no room for curves")
    if per_cell > 1:
        hidden.append(f"{per_cell} experts a cell")
    return TableLayout(
        columns=columns,
        rows=rows,
        label=label,
        heat=-(-experts // per_cell) * cell,
        cell=cell,
        experts_per_cell=per_cell,
        spark=spark,
        drop=drop,
        drop_bar=bar,
        row_height=height,
        table_rows=body,
        roomy=roomy,
        noted=noted,
        legend=legend,
        verdict_lines=verdict_lines,
        numbered=numbered,
        hidden=tuple(hidden),
    )


def _share(room: int, experts: int) -> tuple[int, int, int]:
    """Share ``room`` between load and two curves: cells an expert, experts a cell, curve width."""
    for cell in range(_WIDE_CELL, 0, -1):
        spark = (room - experts * cell) // 2 - 1
        least = _LONG_SPARK if cell > _MAX_CELL else _GOOD_SPARK if cell > 1 else _MIN_SPARK
        if spark >= least:
            return cell, 1, min(_MAX_SPARK, spark)
    with_curves = room - 2 * (_MIN_SPARK + 1)
    if with_curves >= 16:
        per_cell = -(-experts // with_curves)
        spark = (room - -(-experts // per_cell)) // 2 - 1
        return 1, per_cell, min(_MAX_SPARK, spark)
    return 1, -(-experts // max(1, room)), 0


def first_visible(visible: int, selected: int, first: int, count: int) -> int:
    """Where ``visible`` rows of ``count`` begin so that the chosen one is among them.

    It moves as little as possible from ``first``, where they began before.
    """
    first = max(min(first, selected), selected - visible + 1)
    return max(0, min(first, count - visible))


def worst_first(view: RunView) -> Sequence[int]:
    """Layer indices, worst first: by severity, then by collapse index."""
    return sorted(
        range(len(view.layers)),
        key=lambda i: (-(view.layers[i].severity or 0), _index_of(view, i), i),
    )


def _index_of(view: RunView, i: int) -> float:
    value = view.layers[i].collapse_index
    return 2.0 if value is None else value
