"""The screen of the slices as lines: a row is an expert, with the slices and tokens that it reads.

A number has a colour only beyond chance; the rest, few expected choices among it, is a dot.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from microscope_tui.lines import words
from microscope_tui.lines.glyphs import Glyphs
from microscope_tui.lines.pages.slice_table import Cell, ExpertRow, Ordering, SliceTable, explained
from microscope_tui.lines.spans import (
    Line,
    Span,
    line_width,
    pad,
    shortened,
    spread,
    width_of,
    wrap,
)
from microscope_tui.routing import Tables

_EXPERT, _SHARE, _GAP = 8, 7, 2
_LEAST_CELL, _MOST_CELL = 6, 12
_LEAST_TOKENS, _TOKENS = 14, 24
_FAINTEST, _STRONGEST = 3, 16
_LEVELS_PER_OCTAVE = 6
"""The loads have four: a share in a slice of a third of the text is at most 3× that overall."""
_LEVELS = " ▁▂▃▄▅▆▇█"

Named = Callable[[int], str]
"""The text of a token of the vocabulary."""


@dataclass(frozen=True, slots=True)
class SliceLayout:
    """Which slices are shown, and the cells that each has."""

    columns: int
    shown: range
    cell: int
    hidden: int


def fit_slices(names: Sequence[str], columns: int, first: int) -> SliceLayout:
    """As many slices as fit beside the tokens, from ``first`` on."""
    room = columns - _EXPERT - _SHARE - 1
    widest = max(map(width_of, names), default=0)
    cell = max(_LEAST_CELL, min(_MOST_CELL, widest))
    while cell > _LEAST_CELL and len(names) * (cell + 1) > room - _TOKENS:
        cell -= 1
    least = max(_LEAST_TOKENS, columns // 4)
    count = max(1, min(len(names), (room - least) // (cell + 1)))
    first = max(0, min(first, len(names) - count))
    return SliceLayout(columns, range(first, first + count), cell, len(names) - count)


def summary(table: SliceTable, names: Sequence[str], layer: str, at: str, width: int) -> Line:
    """How many experts differ from chance, and which slices they read."""
    differ = sum(row.telling > 0 for row in table.rows)
    do = "prefers or avoids" if differ == 1 else "prefer or avoid"
    line: Line = [
        Span(f"  {layer}", "title"),
        Span(f" {at}   ", "dim"),
        Span(f"{differ}", "title"),
        Span(f" of {len(table.rows)} experts {do} a slice", "value"),
    ]
    chance = table.by_chance
    if table.is_single:
        line.append(Span("   one slice: nothing to compare it with", "warn"))
    elif not any(math.isfinite(one) for one in table.noise):
        line.append(Span("   no shuffled baseline: nothing to compare with", "warn"))
    elif line_width(line) + 16 < width:
        said = f"{chance:.1f}" if chance < 10 else f"{chance:.0f}"
        line.append(Span(f"   by chance {said}", "dim"))
    read = [row.slice_read for row in table.rows]
    preferred: Line = [Span("   preferred:", "dim")]
    for number, name in enumerate(names):
        if (count := read.count(number)) > 0:
            preferred += [Span(f" {shortened(name, 16)} ", "dim"), Span(f"{count} ")]
    if len(preferred) > 1 and line_width([*line, *preferred]) < width:
        line += preferred
    return pad(line, width)


def identity(tables: Tables, layer: int, names: Sequence[str], glyphs: Glyphs, width: int) -> Line:
    """How much of the routing the token alone explains: the shown layer, and all as a curve."""
    value, noise = explained(tables, layer)
    if value is None:
        return pad([Span("  not measured: what token identity alone explains", "faint")], width)
    left: Line = [
        Span("  token identity explains ", "dim"),
        Span(words.index(value), "title"),
        Span(" of the routing", "dim"),
    ]
    if noise is not None:
        left.append(Span(f"   shuffled {words.index(noise)}", "dim"))
    known = [pair for at in range(len(names)) if (pair := explained(tables, at))[0] is not None]
    top = max(max(pair[0] or 0.0, pair[1] or 0.0) for pair in known)
    best = max(range(len(names)), key=lambda at: explained(tables, at)[0] or 0.0)
    head = Span(f"   {names[0]} ", "dim")
    tail = Span(f" {names[-1]}   most in {names[best]}", "dim")
    room = width - line_width([*left, head, tail]) - 1
    if room < 4:
        return pad(left, width)
    per = -(-len(names) // room)
    strip: Line = []
    for at in range(0, len(names), per):
        group = [explained(tables, one) for one in range(at, min(len(names), at + per))]
        value, noise = max(group, key=lambda pair: pair[0] or 0.0)
        strip.append(_level(value, noise, top, glyphs, here=layer in range(at, at + per)))
    return pad([*left, head, *strip, tail], width)


def heads(
    layout: SliceLayout, names: Sequence[str], ordering: Ordering, table: SliceTable
) -> list[Line]:
    """The names of the columns, and the noise of each slice below."""
    top = [*pad([Span("  expert", "dim")], _EXPERT), *pad([Span("share", "dim")], _SHARE, "right")]
    below = [*pad([Span("  chance", "dim")], _EXPERT + _SHARE)]
    for at in layout.shown:
        name = shortened(names[at], layout.cell)
        top += [Span(" "), *_centred(name, layout.cell, "value")]
        limit = table.noise[at]
        said = f"±{limit:.2f}".replace("0.", ".", 1) if math.isfinite(limit) else "-"
        said = "few" if all(row.cells[at].few for row in table.rows) else said
        below += [Span(" "), *_centred(said, layout.cell, "dim")]
    room = layout.columns - line_width(top) - 4
    what: Sequence[str] = ("most telling tokens, with counts", "most telling tokens", "tokens")
    scale = ("log2 of share in the slice ÷ share overall", "log2 of share ÷ share overall", "log2")
    hidden = f"{layout.hidden} more slices: tab" if layout.hidden else ""
    if hidden:
        fits = width_of(what[1]) + width_of(hidden) + 3 <= room
        what, hidden = (what[1:], hidden) if fits else ((hidden, f"{layout.hidden} more: tab"), "")
    top.append(Span(f"   {_fitting(what, room)}", "dim"))
    below.append(Span(f"   {_fitting(scale, room)}", "dim"))
    room = layout.columns - line_width(top) - 2
    both = width_of(hidden) + len(ordering) + 4 <= room
    right = [Span(f"{hidden} " if hidden else "", "dim")]
    if both or not hidden:
        right.append(Span(f"  {ordering} ", "faint"))
    return [
        pad(spread(top, right, layout.columns), layout.columns),
        pad(below, layout.columns),
    ]


def _fitting(texts: Sequence[str], room: int) -> str:
    """The first that fits; all of them say the same."""
    return next((text for text in texts if width_of(text) <= room), "")


def expert_line(
    row: ExpertRow, layout: SliceLayout, named: Named, *, chosen: bool, colour: bool
) -> Line:
    """One expert."""
    line: Line = [
        Span("▶ " if chosen else "  ", "accent"),
        *pad([Span(f"{row.expert}", "title" if chosen else "value")], _EXPERT - 4, "right"),
        Span("  "),
        *pad([Span(_percent(row.share), "dim")], _SHARE, "right"),
    ]
    for at in layout.shown:
        line += [Span(" "), *_ratio(row.cells[at], row.share, layout.cell, colour=colour)]
    for token_id, count, _ in row.lifts:
        part = [Span("   "), Span(named(token_id)), Span(f" {words.short_number(count)}", "dim")]
        if line_width([*line, *part]) >= layout.columns:
            break
        line += part
    return pad(line, layout.columns)


def detail(
    row: ExpertRow, table: SliceTable, names: Sequence[str], named: Named, width: int, rows: int
) -> list[Line]:
    """The expert at the cursor in full: every slice with its number, every token with its lift."""
    said = [
        f"{shortened(names[at], 16)} {_signed(cell.ratio)} ({cell.count:,} of {table.sizes[at]:,})"
        + ("" if cell.beyond else " few" if cell.few else " chance")
        for at, cell in enumerate(row.cells[:64])
    ]
    tokens = [
        f"{named(token_id)} {count:,}× lift {lift:.3g}" for token_id, count, lift in row.lifts
    ]
    head = f"expert {row.expert}"
    lines = [
        *_listed(head, "title", said, width, max(1, rows // 2)),
        *_listed(
            "reads" if tokens else "no token is counted often enough", "dim", tokens, width, rows
        ),
    ]
    return lines[:rows]


def _listed(head: str, role: str, parts: Sequence[str], width: int, most: int) -> list[Line]:
    """``parts`` behind a head, on as many lines as they need; no part is broken."""
    glued = [part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts]
    label = 12 if len(head) < 12 else len(head) + 2
    texts = wrap(" ".join(glued).replace(" ", "   "), max(20, width - label - 3)) or [""]
    lines: list[Line] = []
    for number, text in enumerate(texts[:most]):
        front = f"  {head if number == 0 else '':<{label}}"
        plain = text.strip().replace("\N{NO-BREAK SPACE}", " ")
        lines.append(pad([Span(front, role), Span(plain, "value")], width))
    return lines


def _ratio(cell: Cell, share: float, width: int, *, colour: bool) -> Line:
    """A number on its colour, or a dot for chance."""
    if not share > 0:
        return _centred("-", width, "faint")
    if not cell.beyond:
        return _centred("·", width, "faint")
    level = round(_LEVELS_PER_OCTAVE * cell.ratio)
    level = max(-_STRONGEST, min(_STRONGEST, level))
    level = max(_FAINTEST, level) if cell.ratio > 0 else min(-_FAINTEST, level)
    text = "none" if not cell.count else _signed(cell.ratio)
    dark = level < 2 * _FAINTEST
    return _centred(text, width, f"{'num' if dark else 'heat'}:{level}" if colour else "value")


def _level(
    value: float | None, noise: float | None, top: float, glyphs: Glyphs, *, here: bool
) -> Span:
    """One layer of the curve: blocks up to ``top``, digits for tenths of it; faint is chance."""
    if value is None:
        return Span(" ")
    share = value / top if top > 0 else 0.0
    eighths, tenths = max(0, min(8, round(8 * share))), max(0, min(9, int(10 * share)))
    text = str(tenths) if glyphs is Glyphs.ASCII else _LEVELS[max(1, eighths)]
    chance = noise is not None and value <= noise
    return Span(text, "accent" if here else "faint" if chance else "curve")


def _centred(text: str, width: int, role: str) -> Line:
    left = max(0, (width - width_of(text)) // 2)
    right = max(0, width - width_of(text) - left)
    return [Span(" " * left + text + " " * right, role)]


def _signed(ratio: float) -> str:
    return f"{ratio:+.1f}"


def _percent(share: float) -> str:
    return "never" if not share > 0 else "<.1%" if share < 0.001 else f"{share:.1%}"
