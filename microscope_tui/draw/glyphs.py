"""Numbers as characters: loads, curves, bars. Pure functions without colour.

Three alphabets: braille (two columns and four levels per cell), block (eight levels), ASCII.
"""

import math
import os
from collections.abc import Sequence
from enum import StrEnum
from functools import cache
from itertools import pairwise

from microscope_tui.watch import Column


class Glyphs(StrEnum):
    BRAILLE = "braille"
    BLOCK = "block"
    ASCII = "ascii"

    @property
    def points(self) -> int:
        """Columns of a curve in one cell."""
        return 2 if self is Glyphs.BRAILLE else 1


def glyphs_for(choice: str, stream: object) -> Glyphs:
    """``auto`` is braille if encoding, locale and terminal support it."""
    if choice != "auto":
        return Glyphs(choice)
    # Python uses UTF-8 in the C locale too, but a terminal in that locale may be ASCII only.
    locale = os.environ.get("LC_ALL") or os.environ.get("LANG") or ""
    if locale in ("C", "POSIX"):
        return Glyphs.ASCII
    if os.environ.get("TERM") == "linux":
        return Glyphs.BLOCK  # the console's font has no braille
    encoding = (getattr(stream, "encoding", None) or "ascii").lower().replace("-", "")
    dumb = os.environ.get("TERM") == "dumb"
    return Glyphs.BRAILLE if encoding.startswith("utf") and not dumb else Glyphs.ASCII


_BRAILLE_DOTS = ((0x40, 0x04, 0x02, 0x01), (0x80, 0x20, 0x10, 0x08))  # bottom to top; left, right
_NO_DOTS = 0x2800
"""The first braille character; the others follow by their dots."""
BLOCKS = " ▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_Ends = tuple[float, float]
CALM_FROM, CALM_TO = -0.7, 0.65
"""The calm band in octaves from the fair share: 0.62 to 1.57 times as much."""
HOT_LEVEL = 6
"""Quarter octaves from which a load is hot: 2.8 times the fair share."""
WIDEST_CALM = -1.474, HOT_LEVEL / 4
"""The calm band of a cell of many experts: 0.36 to 2.83 times the fair share."""
FAIR_WITHIN = 0.06
"""Octaves from the fair share up to which a load counts as fair: 4 %."""
_TO_ASCII = str.maketrans(
    "▶●▌▏╎┃·…×▴░▒─↵␍→␣−±÷✓╵━┈▁▂▄▇▆╭╮╰╯│",
    ">*||||.~x^.:-$$>_-~/+'=--~!#?++++|",
)


def spelled(text: str, glyphs: Glyphs) -> str:
    """``text`` in the chosen alphabet; the only conversion to ASCII."""
    if glyphs is not Glyphs.ASCII or text.isascii():
        return text
    return text.translate(_TO_ASCII).encode("ascii", "replace").decode("ascii")


@cache
def calm_band(per_cell: int) -> tuple[float, float]:
    """The calm band in octaves, for a cell that shows the extremes of its experts.

    The highest of n healthy experts is above the fair share; that of a spread layer stays loud.
    """
    wider = 1 - 1 / per_cell**2
    low, high = WIDEST_CALM
    return CALM_FROM + wider * (low - CALM_FROM), CALM_TO + wider * (high - CALM_TO)


def load_level(load: float | None, per_cell: int = 1) -> int | None:
    """Quarter octaves from the fair share, −16 … 16; ``None`` for a dead expert.

    The calm band is one level, 0: the noise of a healthy router repaints nothing.
    """
    if load is None or not load > 0:
        return None
    octaves = math.log2(load)
    low, high = calm_band(per_cell)
    if low <= octaves <= high:
        return 0
    return round(max(-16, min(16, 4 * octaves)))


def shade_level(load: float, per_cell: int = 1) -> int | None:
    """Of one expert three shades of the calm band: −1 below, 0 at, 1 above the fair share."""
    level = load_level(load, per_cell)
    if level != 0 or per_cell > 1:
        return level
    octaves = math.log2(load)
    if octaves < -FAIR_WITHIN:
        return -1
    return int(octaves > FAIR_WITHIN)


def is_calm(level: int | None) -> bool:
    """Whether a load is so near the fair share that its cell has no colour."""
    return level is not None and abs(level) <= 1


def load_glyph(level: int | None) -> str:
    """Without colours: ``x`` dead, ``-`` starving, ``.`` fair, ``+`` over, ``#`` hot."""
    if level is None:
        return "x"
    if level < -1:
        return "-"
    if level <= 1:
        return "."
    return "+" if level < HOT_LEVEL else "#"


def load_mark(level: int | None) -> str:
    """The mark of a dead expert or of a hot one, beside the colour; a blank for all others."""
    if level is None:
        return "×"
    return "▴" if level >= HOT_LEVEL else " "


def ends_of(levels: Sequence[int | None]) -> tuple[int | None, int | None]:
    """The highest level of the living, and the lowest, which is that of the dead."""
    living = [level for level in levels if level is not None]
    highest = max(living, default=None)
    return highest, min(living, default=None) if len(living) == len(levels) else None


def loudest(highest: int | None, lowest: int | None) -> int | None:
    """Of a cell with one character: hot before dead, dead before all others."""
    if highest is None or highest >= HOT_LEVEL:
        return highest
    if lowest is None:
        return None
    return highest if highest >= -lowest else lowest


def spark(
    columns: Sequence[Column], width: int, ends: _Ends, glyphs: Glyphs, height: int = 1
) -> list[str]:
    """More columns than fit are merged, fewer are repeated; gaps (NaN) stay blank."""
    points = width * glyphs.points
    cells = merged(columns, points)
    if cells:
        cells = [cells[at * len(cells) // points] for at in range(points)]
    if glyphs is Glyphs.BRAILLE:
        return _braille(cells, width, ends, height)
    if glyphs is Glyphs.BLOCK:
        return _block(cells, width, ends, height)
    return [*[" " * width] * (height - 1), _ascii(cells, width, ends)]


def bar(share: float, width: int, glyphs: Glyphs) -> str:
    """A bar of exactly ``width`` cells, filled to ``share`` (0 … 1)."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    if glyphs is Glyphs.ASCII:
        return ("#" * round(eighths / 8)).ljust(width)
    full, rest = divmod(eighths, 8)
    return ("█" * full + _EIGHTHS[rest].strip()).ljust(width)


def merged(columns: Sequence[Column], count: int) -> Sequence[Column]:
    """At most ``count`` of them, with the lowest and the highest values."""
    if len(columns) <= count:
        return columns
    cuts = [len(columns) * i // count for i in range(count + 1)]
    found = []
    for first, end in pairwise(cuts):
        some = [column for column in columns[first:end] if column.low == column.low]
        if not some:  # a gap stays one
            found.append(columns[first])
            continue
        mean = sum(column.mean for column in some) / len(some)
        found.append(Column(min(c.low for c in some), mean, max(c.high for c in some)))
    return found


def _braille(cells: Sequence[Column], width: int, ends: _Ends, height: int) -> list[str]:
    levels = 4 * height
    masks = [[0] * width for _ in range(height)]
    for at, cell in enumerate(cells):
        for level in _span(cell, ends, levels):
            masks[height - 1 - level // 4][at // 2] |= _BRAILLE_DOTS[at % 2][level % 4]
    texts = ["".join(chr(_NO_DOTS + mask) for mask in line) for line in masks]
    return [text.replace(chr(_NO_DOTS), " ") for text in texts]


def _block(cells: Sequence[Column], width: int, ends: _Ends, height: int) -> list[str]:
    lines = [[" "] * width for _ in range(height)]
    for at, cell in enumerate(cells):
        filled = _span(cell, ends, 8 * height).stop
        for line in range(height):
            lines[line][at] = BLOCKS[max(0, min(8, filled - 8 * (height - 1 - line)))]
    return ["".join(line) for line in lines]


def _ascii(cells: Sequence[Column], width: int, ends: _Ends) -> str:
    out, before = "", None
    for cell in cells:
        level = next(iter(_span(cell, ends, 3)), None)
        if level is None:
            out += " "
        elif before is None or level == before:
            out += "_--"[level]
        else:
            out += "\\" if level < before else "/"
        before = level
    return out.ljust(width)


def _span(cell: Column, ends: _Ends, levels: int) -> range:
    """The levels that a column covers, lowest first; empty for a gap."""
    low, high = cell.low, cell.high
    if low != low or high != high:
        return range(0)
    return range(_level(low, ends, levels), _level(high, ends, levels) + 1)


def _level(value: float, ends: _Ends, levels: int) -> int:
    bottom, top = ends
    share = (max(bottom, min(top, value)) - bottom) / ((top - bottom) or 1.0)
    return min(levels - 1, int(share * levels))
