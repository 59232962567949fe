"""One bar per expert: load relative to the fair share, or bias around the mean.

If several experts share a bar, it shows the one farthest from fair, never a mean. Where one expert
dwarfs the rest, the axis is logarithmic.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from microscope_tui.lines import words
from microscope_tui.lines.charts import GUTTER, chart_name, noted, tick_text
from microscope_tui.lines.glyphs import BLOCKS, Glyphs, bin_loads, load_level
from microscope_tui.lines.spans import Line, Span, dim, merged, pad, placed, wrap

_WIDEST = 6
_STARVING, _OVER, _HOT = -6, 4, 8  # quarter octaves: the height already shows small differences
_DWARFS = 8.0
"""A load so many times as high as the median, and as fair, would press the others flat."""
_TICKS = {0.25: "1/4", 4.0: "4", 16.0: "16", 64.0: "64"}
_LEAST_ROOM, _TITLE = 8, 48
_NUMBER_GAP = 2
_BLANK = (" ", "")

Cell = tuple[str, str]
Bar = tuple[Sequence[str], str]
"""One character for each row from the top, empty where the bar is not; and a role."""


def load_bars(
    load: Sequence[float] | None,
    size: tuple[int, int],
    glyphs: Glyphs,
    *,
    step: int,
    chosen: int | None = None,
    focused: bool = False,
    nothing: str = "no counts in the log",
) -> list[Line]:
    """The load of every expert in exactly ``size`` cells, with a line at the fair share."""
    width, height = size
    if not load:
        return _nothing("load per expert", nothing, size, focused)
    room, rows = width - GUTTER, height - 2
    shown = bin_loads(load, max(1, room))
    per_bar = -(-len(load) // max(1, len(shown)))
    axis = _LoadAxis.of(load)
    name = "load" if per_bar > 1 or chosen is not None else "load per expert"
    title = chart_name(_named(f"{name} (log)" if axis.log else name, per_bar), focused)
    own = _of_expert(load, chosen, words.decimal)
    title += [*own, dim(f"{' ' if own else '   '}at {step:,}")]
    lines = [noted(title, ["1 is fair"], width)]
    if rows < 1 or room < _LEAST_ROOM:
        return lines + [pad([], width)] * (height - 1)
    cell = max(1, min(_WIDEST, room // max(1, len(shown))))
    body = _blank(room, rows)
    body[axis.row(1.0, rows)][: cell * len(shown)] = [("┈", "faint")] * (cell * len(shown))
    bars = [(_risen(axis.share(x), rows, glyphs), _role(x)) for x in shown]
    _place(body, bars, cell, per_bar, chosen)
    for at, value in enumerate(shown):
        if not value > 0:
            body[-1][at * cell] = ("×", "heat:dead")
    lines += _labelled(body, axis.labels(rows), width)
    numbers = _numbers(len(shown), per_bar, cell, room, chosen)
    return [*lines, pad([Span(" " * GUTTER), *numbers], width)]


def bias_bars(
    bias: Sequence[float],
    size: tuple[int, int],
    glyphs: Glyphs,
    *,
    step: int,
    chosen: int | None = None,
    focused: bool = False,
) -> list[Line]:
    """The bias of every expert as its distance from the mean of the layer, up and down."""
    width, height = size
    room, rows = width - GUTTER, height - 1
    known = [b for b in bias if math.isfinite(b)]
    if not known:
        return _nothing("bias", "no finite value", size, focused)
    mean = math.fsum(known) / len(known)
    away = [b - mean if math.isfinite(b) else math.nan for b in bias]
    per_bar = -(-len(away) // max(1, room))
    groups = (away[at : at + per_bar] for at in range(0, len(away), per_bar))
    shown = [max(group, key=lambda d: abs(d) if d == d else -1.0) for group in groups]
    title = chart_name(_named("bias", per_bar), focused)
    title += _of_expert(bias, chosen, "{:+.4g}".format) or [dim(f"   at {step:,}")]
    lines = [noted(title, [words.no_zero(f"around {mean:+.2g}")], width)]
    if rows < 2 or room < _LEAST_ROOM:
        return lines + [pad([], width)] * (height - 1)
    most = max((abs(d) for d in shown if d == d), default=0.0) or 1.0
    body = _blank(room, rows)
    bars = [(_swung(value / most, rows, glyphs), "curve") for value in shown]
    cell = max(1, min(_WIDEST, room // max(1, len(shown))))
    _place(body, bars, cell, per_bar, chosen)
    return lines + _labelled(body, {0: f"+{most:.1g}", rows - 1: f"-{most:.1g}"}, width)


def bars_width(experts: int, most: int) -> int:
    """Of ``most`` cells those that the bars of so many experts take, or their title."""
    room = max(1, most - GUTTER)
    bars = len(bin_loads([1.0] * experts, room))
    return min(most, max(_TITLE, GUTTER + bars * min(_WIDEST, room // max(1, bars))))


class _LoadAxis(NamedTuple):
    """From 0 to the highest load; logarithmic, from 1/16, where one expert dwarfs the rest."""

    top: float
    log: bool

    @classmethod
    def of(cls, load: Sequence[float]) -> "_LoadAxis":
        alive = [x for x in load if 0 < x < math.inf] or [1.0]
        top = max(2.0, *alive)
        return cls(top, top >= _DWARFS and top > _DWARFS * statistics.median(alive))

    def share(self, load: float) -> float:
        part = load / self.top
        if not self.log or not part > 0:
            return part
        return max(1e-9, 1 + math.log2(part) / math.log2(16 * self.top))

    def row(self, load: float, rows: int) -> int:
        """Where a load is, counted from the top."""
        return rows - 1 - min(rows - 1, int(rows * self.share(load)))

    def labels(self, rows: int) -> Mapping[int, str]:
        """Both ends, the fair share, and between them round loads of a logarithmic axis."""
        labels = {}
        if self.log:
            ticks = {tick: text for tick, text in _TICKS.items() if tick < self.top / 2}
            labels = {self.row(tick, rows): text for tick, text in ticks.items()}
        labels[0] = tick_text(self.top, self.top)
        labels[rows - 1] = "1/16" if self.log else "0"
        labels[self.row(1.0, rows)] = "1"
        return labels


def _of_expert(values: Sequence[float], expert: int | None, spell: Callable[[float], str]) -> Line:
    """The chosen expert and its value, for the title; empty where none is chosen."""
    if expert is None or expert >= len(values):
        return []
    return [Span(f"   {spell(values[expert])}", "title"), Span(f" expert {expert}", "accent")]


def _named(what: str, per_bar: int) -> str:
    return what if per_bar == 1 else f"{what}, worst of {per_bar} experts a bar"


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
    return "accent" if level < 0 else "warn" if level < _HOT else "crit"


def _risen(share: float, rows: int, glyphs: Glyphs) -> list[str]:
    """A bar from the bottom, in eighths of a cell."""
    eighths = round(max(0.0, min(1.0, share if share == share else 0.0)) * rows * 8)
    if share > 0:
        eighths = max(1, eighths)
    parts = [max(0, min(8, eighths - 8 * (rows - 1 - row))) for row in range(rows)]
    if glyphs is Glyphs.ASCII:
        return ["#" if part >= 4 else "_" if part else "" for part in parts]
    return [BLOCKS[part].strip() for part in parts]


def _swung(share: float, rows: int, glyphs: Glyphs) -> list[str]:
    """A bar up or down from the middle, in halves of a cell: a full swing is half of the rows."""
    halves = round(abs(share) * rows) if share == share else 0
    filled = range(rows - halves, rows) if share > 0 else range(rows, rows + halves)
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
    """Draw the bars, each in so many cells; that of the chosen expert is bright."""
    chosen = None if expert is None else expert // per_bar
    gap = 2 if cell >= _WIDEST else 1
    wide = max(1, cell - gap)
    for at, (chars, role) in enumerate(bars):
        drawn = "title" if at == chosen else role
        for row, char in zip(body, chars, strict=True):
            if char:
                row[at * cell : at * cell + wide] = [(char, drawn)] * wide


def _labelled(body: Sequence[Sequence[Cell]], labels: Mapping[int, str], width: int) -> list[Line]:
    return [
        pad([dim(f"{labels.get(row, ''):>{GUTTER - 1}} "), *merged(cells)], width)
        for row, cells in enumerate(body)
    ]


def _numbers(bars: int, per_bar: int, cell: int, room: int, chosen: int | None) -> Line:
    """Expert numbers under the bars, always including the chosen one."""
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
