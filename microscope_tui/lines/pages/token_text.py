"""The text of a probe in the colours of its experts, with the lines above it.

The busiest experts of the layer have a colour and a letter each, all others are grey. With one
expert in the light, its tokens alone are: brightest where it has the largest weight.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from microscope_tui.lines.pages.token_cells import NEWLINE, Piece
from microscope_tui.lines.pages.token_flow import TextLine
from microscope_tui.lines.spans import Line, Span, line_width, merged, pad, shortened, spread
from microscope_tui.routing import Routing

LETTERS = "abcdefg"
_NEUTRAL = len(LETTERS)
"""The colour of an expert in the light that is none of the busiest."""
_SAMPLE = 1 << 15
_MOST_SLICES = 64
_REST = "dim"


@dataclass(frozen=True, slots=True)
class Busiest:
    """The experts of one layer that have a colour, the busiest first, and their shares."""

    shares: Mapping[int, float]

    def colour(self, expert: int | None) -> int | None:
        """The number of its colour; ``None`` for grey."""
        return next((at for at, one in enumerate(self.shares) if one == expert), None)


def busiest(routing: Routing, layer: int) -> Busiest:
    """In turn the busiest of each slice, so that every slice has colours; the largest slice first.

    From the tables; without them, from the largest weights of the first tokens.
    """
    counts = [rows[layer] for rows in routing.tables.counts if layer < len(rows)]
    experts = routing.shape.num_experts
    if not counts or any(len(row) != experts for row in counts):
        firsts = Counter(e for e in routing.first_choices(layer, 0, _SAMPLE) if e is not None)
        counts = [[firsts[expert] for expert in range(experts)]]
    totals = [sum(column) for column in zip(*counts, strict=True)]
    total = sum(totals) or 1
    found: dict[int, float] = {}
    of_slices = sorted(counts[:_MOST_SLICES], key=sum, reverse=True)
    ranked = [sorted(range(experts), key=lambda e: -row[e])[: len(LETTERS)] for row in of_slices]
    for place in range(len(LETTERS)):
        for order, row in zip(ranked, of_slices, strict=True):
            if place < len(order) and row[expert := order[place]] > 0:
                found.setdefault(expert, totals[expert] / total)
    return Busiest(dict(list(found.items())[: len(LETTERS)]))


@dataclass(frozen=True, slots=True)
class Light:
    """How the tokens in view are painted: their choices, and where the cursor is."""

    first: int
    chosen: Sequence[tuple[int, ...]]
    """The choices of the tokens from ``first`` on, the largest weight first."""
    busiest: Busiest
    cursor: int
    expert: int | None = None
    """The only expert in the light."""

    def choice(self, token: int) -> tuple[int, ...]:
        """The chosen experts of a token in view."""
        at = token - self.first
        return self.chosen[at] if 0 <= at < len(self.chosen) else ()

    def role(self, token: int) -> str:
        """The role of its text."""
        if token == self.cursor:
            return "cursor"
        chosen = self.choice(token)
        if self.expert is None:
            colour = self.busiest.colour(chosen[0]) if chosen else None
            return _REST if colour is None else f"token:{colour}"
        if self.expert not in chosen:
            return _REST
        colour = self.busiest.colour(self.expert)
        kind = "lit" if chosen[0] == self.expert else "also"
        return f"{kind}:{_NEUTRAL if colour is None else colour}"

    def mark(self, token: int) -> str:
        """The letter under a token."""
        chosen = self.choice(token)
        if self.expert is not None:
            if self.expert not in chosen:
                return " "
            return "^" if chosen[0] == self.expert else "'"
        colour = self.busiest.colour(chosen[0]) if chosen else None
        return "." if colour is None else LETTERS[colour]


def text_lines(
    lines: Sequence[TextLine], light: Light, slices: Sequence[str], width: int, *, letters: bool
) -> list[Line]:
    """The lines of the text; with ``letters`` each has one below it."""
    found: list[Line] = []
    for line in lines:
        if line.slice_number is not None:
            found.append(_slice_head(line.slice_number, slices, width))
            continue
        found.append(merged((piece.text, _role(piece, light)) for piece in line.pieces))
        if letters:
            marks = "".join(_marked(piece, light) for piece in line.pieces)
            found.append([Span(marks, "accent" if light.expert is not None else "dim")])
    return found


def legend(light: Light, experts: int, width: int, *, letters: bool) -> Line:
    """The experts that have a colour, with their shares, as many as there is room for."""
    if light.expert is not None:
        colour = light.busiest.colour(light.expert)
        at = _NEUTRAL if colour is None else colour
        return pad(
            [
                Span("  only expert ", "dim"),
                Span(f" {light.expert} ", f"lit:{at}"),
                Span("   " + ("^ " if letters else ""), "dim"),
                Span("largest weight", f"lit:{at}"),
                Span("   " + ("' " if letters else ""), "dim"),
                Span("also chosen", f"also:{at}"),
                Span("   not chosen", _REST),
            ],
            width,
        )
    others = experts - len(light.busiest.shares)
    said = "one other" if others == 1 else f"the other {others}"
    rest = Span(f"  {'. ' if letters else ''}{said}" if others > 0 else "", _REST)
    for with_shares, with_rest in ((True, True), (False, True), (False, False)):
        line: Line = [Span("  busiest ", "dim")]
        for at, (expert, share) in enumerate(light.busiest.shares.items()):
            line += [
                Span(" "),
                Span(f" {LETTERS[at]} {expert} " if letters else f" {expert} ", f"token:{at}"),
                Span(f" {share:.0%} " if with_shares else "", "dim"),
            ]
        line += [rest] if with_rest else []
        if line_width(line) <= width:
            break
    return pad(line, width)


def title(
    routing: Routing, layer: int, token: int, width: int, experts: Sequence[int] = ()
) -> Line:
    """The layer, the cursor, its expert and its slice; the model at the right."""
    shape = routing.shape
    at = routing.slice_of(token) if routing.tokens else 0
    name = routing.slices[at] if at < len(routing.slices) else ""
    left: Line = [
        Span(f"  {shape.layer_names[layer]}", "title"),
        Span(f" {layer + 1} of {len(shape.layers)}   token ", "dim"),
        Span(f"{token:,}", "title"),
        Span(f" of {routing.tokens:,}   ", "dim"),
    ]
    if experts:
        left += [Span("expert ", "dim"), Span(f"{experts[0]}", "title"), Span("   ")]
    if name:
        left += [Span("slice ", "dim"), Span(shortened(name, 24), "title")]
    about = "  ".join(part for part in (routing.model, routing.dtype) if part)
    room = width - line_width(left) - 4
    right = [Span(f"{shortened(about, room)} ", "faint")] if about and room >= 8 else []
    return pad(spread(left, right, width), width)


def _marked(piece: Piece, light: Light) -> str:
    """The letter of a piece below the first of its characters that is not blank."""
    word = piece.text.lstrip(" ")
    blanks = len(piece.text) - len(word) if word else 0
    return f"{' ' * blanks}{light.mark(piece.token)}".ljust(piece.width)


def _role(piece: Piece, light: Light) -> str:
    """Grey newlines are fainter than grey words."""
    role = light.role(piece.token)
    return "faint" if role == _REST and piece.text == NEWLINE else role


def _slice_head(number: int, slices: Sequence[str], width: int) -> Line:
    """The name of a slice where it begins."""
    name = slices[number] if number < len(slices) else f"slice {number}"
    text = f"── {shortened(name, max(4, width - 8))} "
    return [Span(text, "accent"), Span("─" * max(0, width - len(text)), "faint")]
