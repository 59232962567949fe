"""One bar per expert: load relative to the fair share, or bias around the mean.

Where there are more experts than columns, a column has two bars; where there are still more, a bar
is the highest of its experts, and a × below it means that one of them has no token. Where one
expert dwarfs the rest, the axis is logarithmic.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

from microscope_tui.draw import words
from microscope_tui.draw.charts import GUTTER, Scale, chart_name, noted, tick_text
from microscope_tui.draw.glyphs import BLOCKS, Glyphs, load_level
from microscope_tui.draw.spans import Line, Span, dim, merged, pad, placed, wrap

_WIDEST = 6
_STARVING, _OVER, _HOT = -6, 4, 8  # quarter octaves: the height already shows small differences
_DWARFS = 8.0
"""A load so many times as high as the median, and as fair, would press the others flat."""
_TICKS = {0.25: "1/4", 4.0: "4", 16.0: "16", 64.0: "64"}
_LEAST_ROOM, _TITLE = 8, 48
_NUMBER_GAP = 2
_WIDEST_SHARE = 0.6  # of the columns of the screen
QUADRANTS = dict(zip(product((False, True), repeat=4), " ▗▖▄▝▐▞▟▘▚▌▙▀▜▛█", strict=True))
"""By what is filled: upper left, upper right, lower left, lower right."""
_ASCII_BLOCKS = " ___#####"
"""``BLOCKS`` in ASCII: below half of a cell, and from there on."""
_BLANK = (" ", "")

Cell = tuple[str, str]
Bar = tuple[Sequence[str], str]
"""One character for each row from the top, empty where the bar is not; and a role."""


def load_bars(
    load: Sequence[float],
    size: tuple[int, int],
    glyphs: Glyphs,
    nothing: str = "no counts in the log",
    *,
    step: int,
    chosen: int | None = None,
    focused: bool = False,
) -> list[Line]:
    """The load of every expert in exactly ``size`` cells (width, height), with a line at the fair
    share.

    Args:
        load: multiples of the fair share.
        nothing: the text where ``load`` is empty.
        step: at which it was counted.
        chosen: the expert of the cursor.
        focused: whether keys act on this chart.
    """
    width, height = size
    if not load:
        return _nothing("load per expert", nothing, size, focused)
    room, rows = width - GUTTER, height - 2
    slots = _Slots.of(len(load), max(1, room), glyphs)
    groups = [load[at : at + slots.experts] for at in range(0, len(load), slots.experts)]
    axis = _axis_of(load)
    own = _of_expert(load, chosen, words.decimal)
    title = [*chart_name(_load_name(axis, slots, bool(own)), focused), *own]
    gap = " " if own else "   "
    title.append(dim(f"{gap}at {step:,}"))
    lines = [noted(title, ["1 is fair"], width)]
    if rows < 1 or room < _LEAST_ROOM:
        return lines + [pad([], width)] * (height - 1)
    columns = -(-len(groups) // slots.bars)
    cell = max(1, min(_WIDEST, room // columns))
    dead = {at // slots.bars for at, group in enumerate(groups) if not min(group) > 0}
    if rows == 1:  # no line for the marks of the dead
        dead = set()
    elif dead:
        rows -= 1
    body = _blank(room, rows)
    body[_row(axis, 1.0, rows)][: cell * columns] = [("┈", "faint")] * (cell * columns)
    highest = [max(group) for group in groups]
    draw = _paired if slots.bars == 2 else _risen
    bars = draw([axis.share(value) for value in highest], highest, rows, glyphs)
    _place(body, bars, cell, slots.experts * slots.bars, chosen)
    if dead:
        body += _blank(room, 1)
    for column in dead:
        body[-1][column * cell] = ("×", "heat:dead")
    lines += _labelled(body, _labels(axis, rows), width)
    numbers = _numbers(columns, slots.experts * slots.bars, cell, room, chosen)
    return [*lines, pad([Span(" " * GUTTER), *numbers], width)]


def _load_name(axis: Scale, slots: "_Slots", of_one: bool) -> str:
    name = "load" if slots.experts > 1 or of_one else "load per expert"
    if axis.log:
        name += " (log)"
    return _named(name, slots.experts)


class _Slots(NamedTuple):
    bars: int
    """Bars in one column: 1 or 2."""
    experts: int
    """Experts of one bar."""

    @classmethod
    def of(cls, experts: int, room: int, glyphs: Glyphs) -> "_Slots":
        bars = 2 if experts > room and glyphs is Glyphs.BRAILLE else 1
        return cls(bars, -(-experts // (bars * room)))


def bias_bars(
    bias: Sequence[float],
    size: tuple[int, int],
    glyphs: Glyphs,
    nothing: str = "no finite value",
    *,
    step: int,
    chosen: int | None = None,
    focused: bool = False,
) -> list[Line]:
    """The bias of every expert as its distance from the mean of the layer, up and down.

    The arguments are those of ``load_bars``.
    """
    width, height = size
    room, rows = width - GUTTER, height - 1
    known = [b for b in bias if math.isfinite(b)]
    if not known:
        return _nothing("bias", nothing, size, focused)
    mean = math.fsum(known) / len(known)
    away = [b - mean for b in bias]
    per_bar = -(-len(away) // max(1, room))
    groups = [away[at : at + per_bar] for at in range(0, len(away), per_bar)]
    title = chart_name(_named("bias", per_bar, "lowest and highest"), focused)
    title += _of_expert(bias, chosen, "{:+.4g}".format) or [dim(f"   at {step:,}")]
    lines = [noted(title, [words.no_zero(f"around {mean:+.2g}")], width)]
    if rows < 2 or room < _LEAST_ROOM:
        return lines + [pad([], width)] * (height - 1)
    most = max(abs(d) for d in away if math.isfinite(d)) or 1.0
    body = _blank(room, rows)
    bars = [(_swung([d / most for d in group], rows, glyphs), "curve") for group in groups]
    cell = max(1, min(_WIDEST, room // len(groups)))
    _place(body, bars, cell, per_bar, chosen)
    return lines + _labelled(body, {0: f"+{most:.1g}", rows - 1: f"-{most:.1g}"}, width)


def bars_width(experts: int, columns: int, glyphs: Glyphs) -> int:
    """At most half of the screen; more if each expert then has a column of its own."""
    most = columns // 2
    if GUTTER + experts <= _WIDEST_SHARE * columns:
        most = max(most, GUTTER + experts)
    room = max(1, most - GUTTER)
    slots = _Slots.of(experts, room, glyphs)
    bars = max(1, -(-experts // (slots.bars * slots.experts)))
    return min(most, max(_TITLE, GUTTER + bars * min(_WIDEST, room // bars)))


def _axis_of(load: Sequence[float]) -> Scale:
    """From 0 to the highest load; logarithmic, from 1/16, where one expert dwarfs the rest."""
    alive = [x for x in load if 0 < x < math.inf] or [1.0]
    top = max(2.0, *alive)
    if top >= _DWARFS and top > _DWARFS * statistics.median(alive):
        return Scale(1 / 16, top, log=True)
    return Scale(0.0, top)


def _row(axis: Scale, load: float, rows: int) -> int:
    return rows - 1 - min(rows - 1, int(rows * axis.share(load)))


def _labels(axis: Scale, rows: int) -> Mapping[int, str]:
    labels = {}
    least = "0"
    if axis.log:
        labels = {_row(axis, x, rows): text for x, text in _TICKS.items() if x < axis.top / 2}
        least = "1/16"
    labels[0] = tick_text(axis.top, axis.top)
    labels[rows - 1] = least
    labels[_row(axis, 1.0, rows)] = "1"
    return labels


def _of_expert(values: Sequence[float], expert: int | None, spell: Callable[[float], str]) -> Line:
    if expert is None or expert >= len(values):
        return []
    return [Span(f"   {spell(values[expert])}", "title"), Span(f" expert {expert}", "accent")]


def _named(what: str, per_bar: int, which: str = "highest") -> str:
    if per_bar == 1:
        return what
    return f"{what}, {which} of {per_bar} experts a bar"


def _nothing(name: str, why: str, size: tuple[int, int], focused: bool) -> list[Line]:
    width, height = size
    notes = wrap(why, max(1, width - GUTTER))
    lines = [chart_name(name, focused), *([Span(" " * GUTTER + note, "faint")] for note in notes)]
    lines += [[]] * max(0, height - len(lines))
    return [pad(line, width) for line in lines[:height]]


def _role(load: float) -> str:
    level = load_level(load)
    if level is None or _STARVING < level < _OVER:
        return "curve"
    if level < 0:
        return "accent"
    return "warn" if level < _HOT else "crit"


def _risen(shares: Sequence[float], loads: Sequence[float], rows: int, glyphs: Glyphs) -> list[Bar]:
    bars: list[Bar] = []
    alphabet = _ASCII_BLOCKS if glyphs is Glyphs.ASCII else BLOCKS
    for share, load in zip(shares, loads, strict=True):
        eighths = max(int(load > 0), round(min(1.0, share) * rows * 8))
        parts = [max(0, min(8, eighths - 8 * (rows - 1 - row))) for row in range(rows)]
        bars.append(([alphabet[part].strip() for part in parts], _role(load)))
    return bars


def _paired(
    shares: Sequence[float], loads: Sequence[float], rows: int, glyphs: Glyphs
) -> list[Bar]:
    """Two bars a column, in halves of a cell and in the colour of the higher one."""
    heights = [
        max(int(load > 0), round(2 * rows * min(1.0, share)))
        for share, load in zip(shares, loads, strict=True)
    ]
    if len(heights) % 2:
        heights.append(0)
    bars: list[Bar] = []
    for at in range(0, len(heights), 2):
        left, right = heights[at : at + 2]
        chars = []
        for above in range(2 * rows - 2, -1, -2):  # half cells below this row
            filled = (left > above + 1, right > above + 1, left > above, right > above)
            chars.append(QUADRANTS[filled].strip())
        bars.append((chars, _role(max(loads[at : at + 2]))))
    return bars


def _swung(shares: Sequence[float], rows: int, glyphs: Glyphs) -> list[str]:
    """A bar from the middle to the extremes of its experts, in halves of a cell."""
    halves = [round(share * rows) for share in shares if math.isfinite(share)]
    filled = range(rows - max([0, *halves]), rows - min([0, *halves]))
    signs = {(True, True): "█#", (True, False): "▀'", (False, True): "▄_", (False, False): ("", "")}
    return [
        signs[2 * row in filled, 2 * row + 1 in filled][glyphs is Glyphs.ASCII]
        for row in range(rows)
    ]


def _blank(room: int, rows: int) -> list[list[Cell]]:
    return [[_BLANK] * room for _ in range(rows)]


def _place(
    body: list[list[Cell]], bars: Sequence[Bar], cell: int, per_bar: int, expert: int | None
) -> None:
    gap = 2 if cell >= _WIDEST else 1
    wide = max(1, cell - gap)
    for at, (chars, role) in enumerate(bars):
        if expert is not None and at == expert // per_bar:
            role = "title"
        for row, char in zip(body, chars, strict=True):
            if char:
                row[at * cell : at * cell + wide] = [(char, role)] * wide


def _labelled(body: Sequence[Sequence[Cell]], labels: Mapping[int, str], width: int) -> list[Line]:
    return [
        pad([dim(f"{labels.get(row, ''):>{GUTTER - 1}} "), *merged(cells)], width)
        for row, cells in enumerate(body)
    ]


def _numbers(bars: int, per_bar: int, cell: int, room: int, chosen: int | None) -> Line:
    cells: list[Cell] = [_BLANK] * room
    digits = len(str(bars * per_bar)) + _NUMBER_GAP
    every = 1 << (max(1, -(-digits // cell)) - 1).bit_length()  # a power of two
    numbers = [(bar, bar * per_bar, "dim") for bar in range(0, bars, every)]
    if chosen is not None and chosen // per_bar < bars:
        numbers.insert(0, (chosen // per_bar, chosen, "cursor"))
    for bar, number, role in numbers:
        text = str(number)
        placed(cells, max(0, min(bar * cell, room - len(text))), text, role, margin=1)
    return merged(cells)
