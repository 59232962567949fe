"""One bar per expert: load relative to the fair share, or bias around the mean.

If several experts share a bar, it shows the one farthest from fair, never a mean. Where one expert
dwarfs the rest, the axis is logarithmic.
"""

import math
import statistics
from collections.abc import Mapping, Sequence

from microscope_tui.lines import words
from microscope_tui.lines.charts import GUTTER, chart_name, noted, tick_text
from microscope_tui.lines.glyphs import Glyphs, bin_loads, load_level
from microscope_tui.lines.spans import Line, Span, merged, pad, placed, wrap

_WIDEST = 6
_STARVING, _OVER, _HOT = -6, 4, 8  # quarter octaves: the height already shows small differences
_EIGHTHS = " ▁▂▃▄▅▆▇█"
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
    alive = [x for x in load if 0 < x < math.inf] or [1.0]
    top = max(2.0, *alive)
    log = top >= _DWARFS and top > _DWARFS * statistics.median(alive)
    name = "load" if per_bar > 1 or chosen is not None else "load per expert"
    name += " (log)" if log else ""
    title = chart_name(_named(name, per_bar), focused)
    if chosen is not None and chosen < len(load):
        title += [Span(f"   {words.decimal(load[chosen])}", "title")]
        title += [Span(f" expert {chosen}", "accent"), Span(f" at {step:,}", "dim")]
    else:
        title += [Span(f"   at {step:,}", "dim")]
    lines = [noted(title, ["1 is fair"], width)]
    if rows < 1 or room < _LEAST_ROOM:
        return lines + [pad([], width)] * (height - 1)
    cell = max(1, min(_WIDEST, room // max(1, len(shown))))
    ticks = {tick: _row(_share(tick, top, log=log), rows) for tick in (_TICKS if log else [])}
    fair = _row(_share(1.0, top, log=log), rows)
    body = [[_BLANK] * room for _ in range(rows)]
    body[fair][: cell * len(shown)] = [("┈", "faint")] * (cell * len(shown))
    bars = [(_risen(_share(x, top, log=log), rows, glyphs), _role(x)) for x in shown]
    if chosen is not None and chosen // per_bar < len(bars):
        bars[chosen // per_bar] = bars[chosen // per_bar][0], "title"
    _place(body, bars, cell)
    for at, value in enumerate(shown):
        if not value > 0:
            body[-1][at * cell] = ("×", "heat:dead")
    labels = {row: _TICKS[tick] for tick, row in ticks.items() if tick < top / 2}
    labels |= {0: tick_text(top, top), rows - 1: "1/16" if log else "0", fair: "1"}
    numbers = _numbers(len(shown), per_bar, cell, room, chosen)
    lines += _labelled(body, labels, width)
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
    shown = [
        max(away[at : at + per_bar], key=lambda d: abs(d) if d == d else -1.0)
        for at in range(0, len(away), per_bar)
    ]
    title = chart_name(_named("bias", per_bar), focused)
    if chosen is not None and chosen < len(bias):
        title += [Span(f"   {bias[chosen]:+.4g}", "title"), Span(f" expert {chosen}", "accent")]
    else:
        title.append(Span(f"   at {step:,}", "dim"))
    lines = [noted(title, [words.no_zero(f"around {mean:+.2g}")], width)]
    if rows < 2 or room < _LEAST_ROOM:
        return lines + [pad([], width)] * (height - 1)
    most = max((abs(d) for d in shown if d == d), default=0.0) or 1.0
    body = [[_BLANK] * room for _ in range(rows)]
    bars = [(_swung(value / most, rows, glyphs), "curve") for value in shown]
    if chosen is not None and chosen // per_bar < len(bars):
        bars[chosen // per_bar] = bars[chosen // per_bar][0], "title"
    _place(body, bars, max(1, min(_WIDEST, room // max(1, len(shown)))))
    return lines + _labelled(body, {0: f"+{most:.1g}", rows - 1: f"-{most:.1g}"}, width)


def bars_width(experts: int, most: int) -> int:
    """Of ``most`` cells those that the bars of so many experts take, or their title."""
    room = max(1, most - GUTTER)
    bars = len(bin_loads([1.0] * experts, room))
    return min(most, max(_TITLE, GUTTER + bars * min(_WIDEST, room // max(1, bars))))


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


def _share(load: float, top: float, *, log: bool) -> float:
    """The height of a bar as a share of the axis, which begins at 0; a logarithmic one at 1/16."""
    if not log or not load / top > 0:
        return load / top
    return max(1e-9, 1 + math.log2(load / top) / math.log2(16 * top))


def _row(share: float, rows: int) -> int:
    return rows - 1 - min(rows - 1, int(rows * share))


def _risen(share: float, rows: int, glyphs: Glyphs) -> list[str]:
    """A bar from the bottom, in eighths of a cell."""
    eighths = round(max(0.0, min(1.0, share if share == share else 0.0)) * rows * 8)
    if share > 0:
        eighths = max(1, eighths)
    parts = [max(0, min(8, eighths - 8 * (rows - 1 - row))) for row in range(rows)]
    if glyphs is Glyphs.ASCII:
        return ["#" if part >= 4 else "_" if part else "" for part in parts]
    return [_EIGHTHS[part].strip() for part in parts]


def _swung(share: float, rows: int, glyphs: Glyphs) -> list[str]:
    """A bar up or down from the middle, in halves of a cell: a full swing is half of the rows."""
    halves = round(abs(share) * rows) if share == share else 0
    filled = range(rows - halves, rows) if share > 0 else range(rows, rows + halves)
    signs = {(True, True): "█#", (True, False): "▀'", (False, True): "▄_", (False, False): ("", "")}
    return [
        signs[2 * row in filled, 2 * row + 1 in filled][glyphs is Glyphs.ASCII]
        for row in range(rows)
    ]


def _place(body: list[list[Cell]], bars: Sequence[Bar], cell: int) -> None:
    wide = max(1, cell - 1 - (cell >= _WIDEST))
    for at, (chars, role) in enumerate(bars):
        for row, char in zip(body, chars, strict=True):
            if char:
                row[at * cell : at * cell + wide] = [(char, role)] * wide


def _labelled(body: Sequence[Sequence[Cell]], labels: Mapping[int, str], width: int) -> list[Line]:
    return [
        pad([Span(f"{labels.get(row, ''):>{GUTTER - 1}} ", "dim"), *merged(cells)], width)
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
