"""A screen as SVG: self-contained, small, and the same in every renderer.

A renderer takes braille, blocks and arrows from another font if its first one lacks them, and they
have other widths there. So braille is drawn as dots, blocks and lines as rectangles, and a few
words at a time have their own place. The same screen gives the same bytes, so that pictures can be
compared and kept in git.

In an animation SMIL adds the cells that changed, screen by screen; without SMIL all are visible.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from html import escape
from itertools import compress, pairwise
from typing import NamedTuple

from rich.cells import cell_len
from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.app import App

from microscope_tui.draw.bars import QUADRANTS
from microscope_tui.kit.palette import Shades

WIDTH, HEIGHT = 12, 24
"""Of a cell; letters of 20 px are 12 px wide in most monospaced fonts."""
_BASELINE = 18
_FONTS = "JetBrains Mono, Cascadia Mono, Menlo, DejaVu Sans Mono, monospace"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PIECE = re.compile("[!-\u052f]+(?: [!-\u052f]+){0,2}|[^ ]")
"""At most three words of letters that every font has, or one other character."""
_DOTS = ((3, 3), (3, 9), (3, 15), (9, 3), (9, 9), (9, 15), (3, 21), (9, 21))
_FRAME_S = 0.25
_HELD = 12  # frames that the last one stays
_MARGIN, _BAR = 12, 36  # around the screen, and above it in a window


Screen = Iterable[Iterable[Segment]]
_Text = tuple[int, int, str, Style]
"""Row, column, text, style."""


class _Box(NamedTuple):
    """A rectangle; in a cell, or on the picture."""

    left: float
    top: float
    right: float
    bottom: float


def _shapes() -> dict[str, tuple[_Box, ...]]:
    quarters = [_Box(x, y, x + 6, y + 12) for y in (0, 12) for x in (0, 6)]
    return {
        **{char: tuple(compress(quarters, filled)) for filled, char in QUADRANTS.items()},
        **{char: (_Box(0, 24 - 3 * n, 12, 24),) for n, char in enumerate("▁▂▃▄▅▆▇█", 1)},
        **{char: (_Box(0, 0, 1.5 * n, 24),) for n, char in enumerate("▏▎▍▌▋▊▉", 1)},
        "▐": (_Box(6, 0, 12, 24),),
        "─": (_Box(0, 11, 12, 13),),
        "━": (_Box(0, 10, 12, 13),),
        "┈": (_Box(0, 11, 12, 12),),  # a thin line: dashes of a whole chart are 10 KB
        "│": (_Box(5, 0, 7, 24),),
        "┃": (_Box(5, 0, 8, 24),),
        "╵": (_Box(5, 0, 7, 12),),
        "┊": tuple(_Box(5, y, 7, y + 3) for y in (1, 7, 13, 19)),
        "╎": tuple(_Box(5, y, 7, y + 8) for y in (2, 14)),
    }


_SHAPES = _shapes()


def lines_of(app: App[None]) -> list[list[Segment]]:
    """The current screen, as ``App.export_screenshot`` draws it."""
    screen = app.screen._compositor.render_update(full=True, screen_stack=app._background_screens)
    size = app.console.options.update_dimensions(*app.size)
    lines = app.console.render_lines(screen or "", size, pad=False)
    return [[segment for segment in line if not segment.control] for line in lines]


def animation_of(screens: Sequence[Screen], columns: int, shades: Shades, title: str | None) -> str:
    """The pictures one after the other, in a loop."""
    frames = len(screens) + _HELD
    groups = ""
    for number, (before, after) in enumerate(pairwise(map(_cells, screens)), 1):
        changed = [cell for cell in after if cell not in before]
        groups += (
            '<g><animate attributeName="visibility" values="hidden;visible" calcMode="discrete" '
            f'keyTimes="0;{number / frames:.4f}" dur="{frames * _FRAME_S}s" '
            f'repeatCount="indefinite"/>{_drawn(changed, shades)}</g>\n'
        )
    first = svg_of(screens[0], columns, shades, title=title)
    return first.replace("</svg>", _NOT_XML.sub("\ufffd", groups) + "</svg>")


def _cells(screen: Screen) -> dict[_Text, None]:
    cells: dict[_Text, None] = {}
    for row, column, text, style in _texts(screen):
        parts = text if set(map(cell_len, text)) == {1} else [text]
        cells |= {(row, at, part, style): None for at, part in enumerate(parts, column)}
    return cells


def svg_of(lines: Screen, columns: int, shades: Shades, *, title: str | None = None) -> str:
    """With a ``title`` in a window."""
    drawn = [_drawn(_texts([line], y), shades, shades.ground.true) for y, line in enumerate(lines)]
    width = columns * WIDTH
    across = width + 2 * _MARGIN
    above = _MARGIN if title is None else _BAR
    down = above + len(drawn) * HEIGHT + _MARGIN
    corners = ""
    if title is not None:
        edge = f'stroke="{shades.word("faint")}" stroke-width="1" stroke-dasharray="none"'
        corners = f' rx="8" {edge}'
        drawn.insert(0, _bar(title, width, shades))
    inside = "\n".join(filter(None, drawn))
    return _NOT_XML.sub(
        "\ufffd",
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{-_MARGIN} {-above} {across} {down}" '
        f'font-family="{_FONTS}" font-size="20" fill="{shades.word("value")}" '
        f'stroke-width="4.2" stroke-linecap="round" stroke-dasharray="0 {WIDTH // 2}" '
        'shape-rendering="crispEdges">\n'
        f'<rect x="{-_MARGIN}" y="{-above}" width="{across}" height="{down}" '
        f'fill="{shades.ground.true}"{corners}/>\n{inside}\n</svg>',
    )


def _bar(title: str, width: int, shades: Shades) -> str:
    buttons = [
        f'<circle cx="{20 * at}" cy="{-_BAR // 2}" r="6" fill="{shades.word(role)}" '
        'shape-rendering="auto"/>'
        for at, role in enumerate(("crit", "warn", "ok"))
    ]
    place = f'x="{width // 2}" y="{6 - _BAR // 2}" font-size="16" text-anchor="middle"'
    return f"{''.join(buttons)}<text {place}>{escape(title, quote=False)}</text>"


def _texts(lines: Screen, first_row: int = 0) -> Iterator[_Text]:
    for row, line in enumerate(lines, first_row):
        column = 0
        for text, style, _ in line:
            yield row, column, text, style or Style.null()
            column += cell_len(text)


def _drawn(texts: Iterable[_Text], shades: Shades, behind: str = "") -> str:
    """Grounds except ``behind``, then shapes and dots, one path for each colour, then words."""
    grounds: dict[str, list[_Box]] = defaultdict(list)
    shapes: dict[str, list[_Box]] = defaultdict(list)
    dots: dict[str, list[tuple[int, int]]] = defaultdict(list)
    words: list[str] = []
    for row, column, text, style in texts:
        top, left = row * HEIGHT, column * WIDTH
        ink, ground, attributes = _look(style, shades)
        if ground != behind:
            _add(grounds[ground], _Box(left, top, left + cell_len(text) * WIDTH, top + HEIGHT))
        for piece in _PIECE.finditer(text):
            char = piece[0]
            x = left + cell_len(text[: piece.start()]) * WIDTH
            if "\u2800" <= char <= "\u28ff":
                bits = ord(char) - 0x2800
                dots[ink] += [(top + b, x + a) for n, (a, b) in enumerate(_DOTS) if bits >> n & 1]
            elif char in _SHAPES:
                for box in _SHAPES[char]:
                    part = _Box(x + box[0], top + box[1], x + box[2], top + box[3])
                    _add(shapes[ink], part)
            else:
                words.append(_word(char, x, top, attributes))
    paths = [
        f'<path fill="{colour}" d="{"".join(map(_rectangle, _stacked(boxes)))}"/>'
        for layer in (grounds, shapes)
        for colour, boxes in layer.items()
    ]
    paths += [
        f'<path stroke="{colour}" shape-rendering="auto" d="{_dotted(places)}"/>'
        for colour, places in dots.items()
        if places
    ]
    return "".join((*paths, *words))


@cache
def _look(style: Style, shades: Shades) -> tuple[str, str, str]:
    ink = _hex(style.color, shades.word("value"))
    ground = _hex(style.bgcolor, shades.ground.true)
    if style.reverse:
        ink, ground = ground, ink
    attributes = f' fill="{ink}"' if ink != shades.word("value") else ""
    if style.bold:
        attributes += ' font-weight="bold"'
    if style.underline:
        attributes += ' text-decoration="underline"'
    return ink, ground, attributes


def _hex(colour: Color | None, otherwise: str) -> str:
    if colour is None or colour.is_default:
        return otherwise
    return colour.get_truecolor().hex


def _add(boxes: list[_Box], box: _Box) -> None:
    """Add a rectangle, or widen the one that it continues: most of a screen is background."""
    before = boxes[-1] if boxes else None
    if before is not None and before.right == box.left and before[1::2] == box[1::2]:
        boxes[-1] = before._replace(right=box.right)
    else:
        boxes.append(box)


def _stacked(boxes: Iterable[_Box]) -> Iterable[_Box]:
    found: dict[tuple[float, ...], _Box] = {}
    for box in boxes:
        top = found.pop((box.left, box.right, box.top), box).top
        found[box.left, box.right, box.bottom] = box._replace(top=top)
    return found.values()


def _rectangle(box: _Box) -> str:
    width = f"{box.right - box.left:g}"
    return f"M{box.left:g} {box.top:g}h{width}v{box.bottom - box.top:g}h-{width}z"


def _dotted(places: Iterable[tuple[int, int]]) -> str:
    """Neighbours (y, x) as one line: its dashes have no length, and round ends make them dots."""
    rows: list[list[int]] = []
    for y, x in sorted(places):
        if rows and rows[-1][0] == y and rows[-1][2] == x - WIDTH // 2:
            rows[-1][2] = x
        else:
            rows.append([y, x, x])
    return "".join(f"M{first} {y}h{last - first + 1}" for y, first, last in rows)


def _word(text: str, left: int, top: int, attributes: str) -> str:
    length = f' textLength="{cell_len(text) * WIDTH}"' if len(text) > 1 else ""
    place = f'x="{left}" y="{top + _BASELINE}"{length}'
    return f"<text {place}{attributes}>{escape(text, quote=False)}</text>"
