"""One bar per expert: load relative to the fair share, or bias around the mean.

If several experts share a bar, it shows the one farthest from fair, never a mean.
"""

import math
from collections.abc import Mapping, Sequence

from microscope_tui.lines import words
from microscope_tui.lines.charts import GUTTER, noted, tick_text
from microscope_tui.lines.glyphs import Glyphs, bin_loads, load_level
from microscope_tui.lines.spans import Line, Span, merged, pad, wrap

_WIDEST = 6
_STARVING, _OVER, _HOT = -6, 4, 8  # quarter octaves: the height already shows small differences
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_NUMBER_GAP = 2

Cell = tuple[str, str]


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
    title = _title(
        _named("load" if per_bar > 1 or chosen is not None else "load per expert", per_bar), focused
    )
    if chosen is not None and chosen < len(load):
        title += [Span(f"   {words.decimal(load[chosen])}", "title")]
        title += [Span(f" expert {chosen}", "accent"), Span(f" at {step:,}", "dim")]
    else:
        title += [Span(f"   at {step:,}", "dim")]
    title = noted(title, ["1 is fair"], width)
    if rows < 1 or room < 8:
        return [title] + [pad([], width)] * (height - 1)
    top = max(2.0, *(x for x in load if math.isfinite(x)))
    cell = _cell_width(room, len(shown))
    fair = rows - 1 - min(rows - 1, int(rows / top))
    body = [[(" ", "")] * room for _ in range(rows)]
    body[fair] = [(_fair_line(glyphs), "faint")] * (cell * len(shown)) + [(" ", "")] * (
        room - cell * len(shown)
    )
    for at, value in enumerate(shown):
        here = chosen is not None and chosen // per_bar == at
        _raise(body, at * cell, _bar_width(cell), value / top, glyphs, _role(value, here))
        if not value > 0:
            body[-1][at * cell] = ("×", "heat:dead")
    labels = {0: tick_text(top, top), rows - 1: "0", fair: "1"}
    lines = _labelled(body, labels, width)
    numbers = _numbers(len(shown), per_bar, cell, room, chosen)
    return [title, *lines, pad([Span(" " * GUTTER), *numbers], width)]


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
    title = _title(_named("bias", per_bar), focused)
    if chosen is not None and chosen < len(bias):
        title += [Span(f"   {bias[chosen]:+.4g}", "title"), Span(f" expert {chosen}", "accent")]
    else:
        title.append(Span(f"   at {step:,}", "dim"))
    around = f"around {mean:+.2g}".replace("0.", ".", 1)
    title = noted(title, [around], width)
    if rows < 2 or room < 8:
        return [title] + [pad([], width)] * (height - 1)
    most = max((abs(d) for d in shown if d == d), default=0.0) or 1.0
    cell, body = _cell_width(room, len(shown)), [[(" ", "")] * room for _ in range(rows)]
    for at, value in enumerate(shown):
        here = chosen is not None and chosen // per_bar == at
        role = "title" if here else "curve"
        _swing(body, at * cell, _bar_width(cell), value / most, glyphs, role)
    labels = {0: f"+{most:.1g}", rows - 1: f"-{most:.1g}"}
    lines = _labelled(body, labels, width)
    return [title, *lines]


def _labelled(body: Sequence[Sequence[Cell]], labels: Mapping[int, str], width: int) -> list[Line]:
    """The rows of bars, with the numbers of the scale at their left."""
    return [
        pad(
            [
                Span(f"{labels.get(row, ''):>{GUTTER - 1}} ", "dim"),
                *merged(cells),
            ],
            width,
        )
        for row, cells in enumerate(body)
    ]


def _nothing(name: str, why: str, size: tuple[int, int], focused: bool) -> list[Line]:
    width, height = size
    notes = wrap(why, max(1, width - GUTTER))
    lines = [_title(name, focused), *([Span(" " * GUTTER + note, "faint")] for note in notes)]
    lines += [[]] * max(0, height - len(lines))
    return [pad(line, width) for line in lines[:height]]


def _title(name: str, focused: bool) -> Line:
    mark = Span("▶ " if focused else "  ", "accent")
    return [mark, Span(name, "accent" if focused else "value")]


def _named(what: str, per_bar: int) -> str:
    return what if per_bar == 1 else f"{what}, worst of {per_bar} experts a bar"


def _cell_width(room: int, bars: int) -> int:
    return max(1, min(_WIDEST, room // max(1, bars)))


def _bar_width(cell: int) -> int:
    return max(1, cell - 1 - (cell >= _WIDEST))


def _role(load: float, here: bool) -> str:
    if here:
        return "title"
    level = load_level(load)
    if level is None or _STARVING < level < _OVER:
        return "curve"
    return "accent" if level < 0 else "warn" if level < _HOT else "crit"


def _fair_line(glyphs: Glyphs) -> str:
    return "-" if glyphs is Glyphs.ASCII else "┈"


def _raise(
    body: list[list[Cell]], left: int, width: int, share: float, glyphs: Glyphs, role: str
) -> None:
    """A bar from the bottom, in eighths of a cell."""
    rows = len(body)
    eighths = round(max(0.0, min(1.0, share if share == share else 0.0)) * rows * 8)
    if share > 0:
        eighths = max(1, eighths)
    for row in range(rows):
        part = max(0, min(8, eighths - 8 * (rows - 1 - row)))
        if not part:
            continue
        char = _EIGHTHS[part] if glyphs is not Glyphs.ASCII else "#" if part >= 4 else "_"
        for column in range(left, min(left + width, len(body[row]))):
            body[row][column] = (char, role)


def _swing(
    body: list[list[Cell]], left: int, width: int, share: float, glyphs: Glyphs, role: str
) -> None:
    """A bar up or down from the middle, in halves of a cell."""
    rows = len(body)
    halves = round(abs(share) * rows) if share == share else 0  # a full swing is half of the rows
    middle = rows  # in halves from the top
    start, end = (middle - halves, middle) if share > 0 else (middle, middle + halves)
    for row in range(rows):
        upper, lower = start <= 2 * row < end, start <= 2 * row + 1 < end
        if not (upper or lower):
            continue
        char = "█" if upper and lower else "▀" if upper else "▄"
        if glyphs is Glyphs.ASCII:
            char = "#" if upper and lower else "'" if upper else "_"
        for column in range(left, min(left + width, len(body[row]))):
            body[row][column] = (char, role)


def _numbers(bars: int, per_bar: int, cell: int, room: int, chosen: int | None) -> Line:
    """Expert numbers under the bars, always including the chosen one."""
    cells: list[Cell] = [(" ", "")] * room

    def put(bar: int, number: int, role: str) -> None:
        text, at = str(number), bar * cell
        at = max(0, min(at, room - len(text)))
        around = cells[max(0, at - 1) : at + len(text) + 1]
        if all(char == " " for char, _ in around):
            cells[at : at + len(text)] = [(char, role) for char in text]

    if chosen is not None and chosen // per_bar < bars:
        put(chosen // per_bar, chosen, "cursor")
    digits = len(str(bars * per_bar)) + _NUMBER_GAP
    every = max(1, -(-digits // cell))
    every = next(n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, every) if n >= every)
    for bar in range(0, bars, every):
        put(bar, bar * per_bar, "dim")
    return merged(cells)
