"""Which slice of a text each expert reads: the numbers, and a row per expert.

The log2 of the share of an expert in a slice over its share overall. What shuffled slices reach too
(``Tables.noise``, the 99 % point) counts as chance, and so does every ratio of an expert with fewer
than ``FEWEST_EXPECTED`` pairs expected in the slice: the noise leaves those out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, repeat

from microscope_tui.draw import words
from microscope_tui.draw.glyphs import BLOCKS, Glyphs
from microscope_tui.draw.spans import (
    Line,
    Span,
    cursor,
    dim,
    first_fitting,
    in_turn,
    labelled,
    line_width,
    pad,
    shortened,
    spread,
    width_of,
    wrap,
)
from microscope_tui.extensions.anatomy.layout import Tables
from microscope_tui.measures import FEWEST_EXPECTED

CHANCE_BEYOND = 0.01
"""Share of the cells that shuffled slices put beyond the noise."""
_NONE = 0.5
"""What a count of zero is taken for, so that its ratio is finite."""
_EXPERT, _SHARE = 8, 7
_LEAST_CELL, _MOST_CELL = 6, 12
_LEAST_TOKENS, _TOKENS = 14, 24
_FAINTEST, _STRONGEST = 3, 16
_LEVELS_PER_OCTAVE = 6
"""The loads have four: a share in a slice of a third of the text is at most 3× that overall."""
_NAMED = 4
_GLUE = "\N{NO-BREAK SPACE}"

Named = Callable[[int], str]


class Ordering(StrEnum):
    TELLING = "most telling first"
    SLICE = "by slice"
    NUMBER = "by number"


@dataclass(frozen=True, slots=True)
class Cell:
    """One expert in one slice."""

    count: int
    """Assignments of the expert."""
    ratio: float
    """log2 of the count over the expected one."""
    beyond: bool
    """Whether that is more than chance: then it has a colour."""
    few: bool = False
    """Too few pairs were expected: the ratio means nothing."""

    @classmethod
    def of(cls, count: int, expected: float, noise: float) -> "Cell":
        """``noise``: of the slice, on the scale of the ratio."""
        if not expected > 0:
            return cls(count, 0.0, False, few=True)
        ratio, few = math.log2(max(count, _NONE) / expected), expected < FEWEST_EXPECTED
        return cls(count, ratio, abs(ratio) > noise and not few, few)


@dataclass(frozen=True, slots=True)
class ExpertRow:
    expert: int
    share: float
    """Of all assignments of the layer, 0 … 1."""
    cells: Sequence[Cell]
    """One per slice."""
    lifts: Sequence[tuple[int, int, float]]
    """Its most telling tokens: id, count, lift."""

    @property
    def telling(self) -> float:
        """The largest distance from zero beyond chance."""
        return max((abs(cell.ratio) for cell in self.cells if cell.beyond), default=0.0)

    @property
    def slice_read(self) -> int | None:
        """The slice that it reads most above its share."""
        more = [(c.ratio, at) for at, c in enumerate(self.cells) if c.beyond and c.ratio > 0]
        return max(more)[1] if more else None


class NoTables(ValueError):
    """The file has no tables of this layer; the message says why."""


@dataclass(frozen=True, slots=True)
class SliceTable:
    """The numbers of one layer."""

    rows: Sequence[ExpertRow]
    """By number."""
    noise: Sequence[float]
    """Per slice; infinite where there is no baseline, as with a single slice."""
    sizes: Sequence[int]
    """Assignments in each slice."""

    def ordered(self, ordering: Ordering) -> Sequence[ExpertRow]:
        """The rows as a screen lists them; by slice the strongest preference first."""
        if ordering is Ordering.NUMBER:
            return self.rows

        def place(row: ExpertRow) -> tuple[float, ...]:
            read = row.slice_read
            most = 0.0 if read is None else row.cells[read].ratio
            group = 0
            if ordering is Ordering.SLICE:
                group = len(self.sizes) if read is None else read
            return group, -most, -row.telling, -row.share

        return sorted(self.rows, key=place)

    @property
    def has_tokens(self) -> bool:
        """False for held-out text, whose tokens are not in the log."""
        return any(row.lifts for row in self.rows)

    @property
    def by_chance(self) -> float:
        """The number of experts that would differ in a slice by chance."""
        known = [at for at, noise in enumerate(self.noise) if math.isfinite(noise)]
        judged = [sum(not row.cells[at].few for at in known) for row in self.rows]
        return sum(1.0 - (1.0 - CHANCE_BEYOND) ** cells for cells in judged)


def slice_table(tables: Tables, layer: int, slices: int, experts: int) -> SliceTable:
    """The numbers of one layer.

    ``NoTables``: they are missing, or do not fit the file; the message is for the screen.
    """
    counts = _counts_of(tables, layer, slices, experts)
    sizes = [sum(row) for row in counts]
    total = sum(sizes) or 1
    noise = [math.inf] * slices
    for at, limit in enumerate(tables.noise[:slices]):
        if limit > 0:
            noise[at] = limit
    lifts = tables.lifts[layer] if layer < len(tables.lifts) else ()
    rows = []
    for expert, telling in zip(range(experts), chain(lifts, repeat(())), strict=False):
        own = [row[expert] for row in counts]
        share = sum(own) / total
        expected = [size * share for size in sizes]
        rows.append(ExpertRow(expert, share, [*map(Cell.of, own, expected, noise)], telling))
    return SliceTable(rows, noise, sizes)


def _counts_of(tables: Tables, layer: int, slices: int, experts: int) -> Sequence[Sequence[int]]:
    if not tables.counts:
        raise NoTables("this probe has no tables: it was interrupted before they were counted")
    counts = [rows[layer] for rows in tables.counts if layer < len(rows)]
    if len(counts) != slices or any(len(row) != experts for row in counts):
        raise NoTables("the tables of this probe do not fit its layers, slices and experts")
    if any(count < 0 for row in counts for count in row):
        raise NoTables("the tables of this probe have counts below zero")
    return counts


def explained(tables: Tables, layer: int) -> tuple[float | None, float | None]:
    """The part of the routing that token identity explains, and what chance would."""
    return _known(tables.identity, layer), _known(tables.identity_noise, layer)


def _known(shares: Sequence[float | None], layer: int) -> float | None:
    share = shares[layer] if layer < len(shares) else None
    return share if share is not None and math.isfinite(share) else None


@dataclass(frozen=True, slots=True)
class SliceLayout:
    """Which slices are in view, and the room of each."""

    columns: int
    shown: range
    """Numbers of the slices."""
    cell: int
    """Cells of one of them."""
    hidden: int
    """How many others there are."""


def fit_slices(names: Sequence[str], columns: int, first: int) -> SliceLayout:
    """As many slices as fit, from ``first`` on, beside the tokens."""
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
    """How many experts prefer a slice, how many would by chance, and which slices they prefer.

    ``layer``: its name; ``at``: where it is, such as ``2 of 6``.
    """
    differ = sum(row.telling > 0 for row in table.rows)
    do = "prefers or avoids" if differ == 1 else "prefer or avoid"
    line: Line = [Span(f"  {layer}", "title"), *in_turn(f" {at}   ", f"{differ}", role="title")]
    line.append(Span(f" of {len(table.rows)} experts {do} a slice"))
    chance = table.by_chance
    if sum(size > 0 for size in table.sizes) < 2:
        line.append(Span("   one slice: nothing to compare it with", "warn"))
    elif not any(math.isfinite(one) for one in table.noise):
        line.append(Span("   no shuffled baseline: nothing to compare with", "warn"))
    elif line_width(line) + 16 < width:
        digits = 1 if chance < 10 else 0
        line.append(dim(f"   by chance {chance:.{digits}f}"))
    read = [row.slice_read for row in table.rows]
    preferred: Line = [dim("   preferred:")]
    for number, name in enumerate(names):
        if (count := read.count(number)) > 0:
            preferred += [dim(f" {shortened(name, 16)} "), Span(f"{count} ")]
    if len(preferred) > 1 and line_width([*line, *preferred]) < width:
        line += preferred
    return pad(line, width)


def takers(table: SliceTable, names: Sequence[str], step: int, width: int) -> Line:
    """``held-out text at step 300: experts 3, 9 take code; expert 1 takes prose``."""
    read = [row.slice_read for row in table.rows]
    parts = []
    for place, name in enumerate(names):
        own = [str(expert) for expert, chosen in enumerate(read) if chosen == place]
        if own:
            experts, take = ("expert", "takes") if len(own) == 1 else ("experts", "take")
            listed = ", ".join(own)
            if len(own) > _NAMED:
                listed = f"{', '.join(own[: _NAMED - 1])} and {len(own) - _NAMED + 1} more"
            parts.append(f"{experts} {listed} {take} {shortened(name, 24)}")
    said = "; ".join(parts) or "no expert prefers a source"
    return pad([dim(f"  held-out text at step {step:,}: "), Span(said)], width)


def identity(tables: Tables, layer: int, names: Sequence[str], glyphs: Glyphs, width: int) -> Line:
    """``explained`` of the shown layer, and of all as a curve."""
    value, noise = explained(tables, layer)
    if value is None:
        return pad([Span("  not measured: what token identity alone explains", "faint")], width)
    explains, of = "  token identity explains ", " of the routing"
    left = in_turn(explains, words.index(value), of, role="title")
    if noise is not None:
        left.append(dim(f"   shuffled {words.index(noise)}"))
    pairs = [explained(tables, at) for at in range(len(names))]
    values = [pair[0] or 0.0 for pair in pairs]
    top = max(max(a, b or 0.0) for a, b in pairs if a is not None)
    head = dim(f"   {names[0]} ")
    tail = dim(f" {names[-1]}   most in {names[values.index(max(values))]}")
    room = width - line_width([*left, head, tail]) - 1
    if room < 4:
        return pad(left, width)
    per = -(-len(names) // room)
    strip: Line = []
    for at in range(0, len(names), per):
        value, noise = max(pairs[at : at + per], key=lambda pair: pair[0] or 0.0)
        strip.append(_level(value, noise, top, glyphs, here=layer in range(at, at + per)))
    return pad([*left, head, *strip, tail], width)


def heads(
    layout: SliceLayout, names: Sequence[str], ordering: Ordering, table: SliceTable
) -> list[Line]:
    """The two lines above the rows: the slices, and what is chance in each."""
    top = [*pad([dim("  expert")], _EXPERT), *pad([dim("share")], _SHARE, "right")]
    below = pad([dim("  chance")], _EXPERT + _SHARE)
    for at in layout.shown:
        top += [Span(" "), _centred(shortened(names[at], layout.cell), layout.cell, "value")]
        limit = table.noise[at]
        text = words.no_zero(f"±{limit:.2f}") if math.isfinite(limit) else "-"
        if all(row.cells[at].few for row in table.rows):
            text = "few"
        below += [Span(" "), _centred(text, layout.cell, "dim")]
    room = layout.columns - line_width(top) - 4
    what: Sequence[str] = ("most telling tokens, with counts", "most telling tokens", "tokens")
    if not table.has_tokens:
        what = ("", "", "")
    scale = ("log2 of share in the slice ÷ share overall", "log2 of share ÷ share overall", "log2")
    if layout.hidden:
        what = (f"{layout.hidden} more slices: tab", f"{layout.hidden} more: tab")
    top.append(dim(f"   {first_fitting(what, room)}"))
    below.append(dim(f"   {first_fitting(scale, room)}"))
    right = [Span(f"  {ordering} ", "faint")]
    return [spread(top, right, layout.columns), pad(below, layout.columns)]


def expert_line(
    row: ExpertRow, layout: SliceLayout, named: Named, *, chosen: bool, colour: bool
) -> Line:
    """One row: number, share, a cell per slice, and its most telling tokens.

    ``named``: the text of a token id; ``chosen``: at the cursor.
    """
    number = pad([Span(f"{row.expert}", "title" if chosen else "value")], _EXPERT - 4, "right")
    share = pad([dim(_percent(row.share))], _SHARE, "right")
    line: Line = [cursor(chosen), *number, Span("  "), *share]
    for at in layout.shown:
        line += [Span(" "), _ratio(row.cells[at], row.share, layout.cell, colour=colour)]
    for token_id, count, _ in row.lifts:
        part = [Span("   "), Span(named(token_id)), dim(f" {words.short_number(count)}")]
        if line_width([*line, *part]) >= layout.columns:
            break
        line += part
    return pad(line, layout.columns)


def detail(
    row: ExpertRow, table: SliceTable, names: Sequence[str], named: Named, width: int, rows: int
) -> list[Line]:
    """The expert at the cursor in words and in full: each slice and token with its ratio."""
    ratios = []
    for name, size, cell in zip(names, table.sizes, row.cells[:64], strict=False):
        text = f"{shortened(name, 16)} {cell.ratio:+.1f} ({cell.count:,} of {size:,})"
        if not cell.beyond:
            text += " few" if cell.few else " chance"
        ratios.append(text)
    tokens = [
        f"{named(token_id)} {count:,}× lift {lift:.3g}" for token_id, count, lift in row.lifts
    ]
    reads = "reads" if tokens else "no token is counted often enough"
    if not table.has_tokens:
        reads = ""
    lines = _listed(f"expert {row.expert}", "title", ratios, width)[: max(1, rows // 2)]
    sentence = first_fitting((in_words(row, table, names, most) for most in (4, 3, 2)), width - 2)
    first = [pad([Span(f"  {sentence or in_words(row, table, names, 1)}")], width)]
    return [*first, *lines, *_listed(reads, "dim", tokens, width)][:rows]


def in_words(row: ExpertRow, table: SliceTable, names: Sequence[str], most: int) -> str:
    """In a sentence, which slices the expert reads more and less often than the whole text.

    ``most``: slices that are named; the strongest first.
    """
    if not any(map(math.isfinite, table.noise)):
        return f"Nothing to compare the slices of expert {row.expert} with."
    found = sorted((-cell.ratio, at) for at, cell in enumerate(row.cells) if cell.beyond)
    parts = [f"{shortened(names[at], 16)} {_often(row.cells[at])}" for _, at in found[:most]]
    if not parts:
        return f"Expert {row.expert} reads every slice about as often as chance allows."
    if parts[0].endswith("often"):
        parts[0] += " as overall"
    end = " …" if found[most:] else "."
    return f"Expert {row.expert} reads {', '.join(parts)}{end}"


def _often(cell: Cell) -> str:
    if not cell.count:
        return "never"
    times = 2**cell.ratio
    return f"1/{1 / times:.0f} as often" if times <= 0.5 else f"{times:.1f} times as often"


def _listed(head: str, role: str, parts: Sequence[str], width: int) -> list[Line]:
    label = 14 if len(head) < 12 else len(head) + 4
    glued = "   ".join(part.replace(" ", _GLUE) for part in parts)
    texts = wrap(glued, max(20, width - label - 1)) or [""]
    lines = labelled(
        head, (text.strip().replace(_GLUE, " ") for text in texts), label, "value", role
    )
    return [pad(line, width) for line in lines]


def _ratio(cell: Cell, share: float, width: int, *, colour: bool) -> Span:
    if not cell.beyond:
        return _centred("·" if share > 0 else "-", width, "faint")
    text = f"{cell.ratio:+.1f}" if cell.count else "none"
    if not colour:
        return _centred(text, width, "value")
    strength = round(_LEVELS_PER_OCTAVE * abs(cell.ratio))
    level = int(math.copysign(max(_FAINTEST, min(_STRONGEST, strength)), cell.ratio))
    ink = "num" if level < 2 * _FAINTEST else "heat"  # light on a dark cell
    return _centred(text, width, f"{ink}:{level}")


def _level(
    value: float | None, noise: float | None, top: float, glyphs: Glyphs, *, here: bool
) -> Span:
    """One layer of the curve: a block, or a digit for tenths of ``top``; faint is chance."""
    if value is None:
        return Span(" ")
    share = value / top if top > 0 else 0.0
    eighths, tenths = max(0, min(8, round(8 * share))), max(0, min(9, int(10 * share)))
    text = str(tenths) if glyphs is Glyphs.ASCII else BLOCKS[max(1, eighths)]
    if here:
        return Span(text, "accent")
    chance = noise is not None and value <= noise
    return Span(text, "faint" if chance else "curve")


def _centred(text: str, width: int, role: str) -> Span:
    blanks = max(0, width - width_of(text))
    return Span(" " * (blanks // 2) + text + " " * (blanks - blanks // 2), role)


def _percent(share: float) -> str:
    if not share > 0:
        return "never"
    return "<.1%" if share < 0.001 else f"{share:.1%}"
