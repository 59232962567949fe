"""The text of a probe in the colours of its experts, and the token at the cursor in detail.

The experts of the token at the cursor have a colour and a letter each, all others are grey. If one
expert is selected, only its tokens are highlighted, brightest where it has the largest weight.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from microscope_tui.draw import words
from microscope_tui.draw.glyphs import Glyphs, bar
from microscope_tui.draw.spans import (
    Line,
    Span,
    cursor,
    dim,
    in_turn,
    line_width,
    merged,
    pad,
    shortened,
    spread,
)
from microscope_tui.extensions.anatomy.layout import Choice
from microscope_tui.extensions.anatomy.routing_file import Routing
from microscope_tui.extensions.anatomy.token_flow import NEWLINE, TextLine, shown_token

LETTERS = "abcdefg"
_REST = "dim"
_NUMBER, _WEIGHT = 4, 6
_MARGIN_IS_SMALL = 0.01
_HERE = ("value", "accent", "dim")
_ELSEWHERE = ("dim", "value", "faint")
"""Roles of a layer's name, of its first expert, and of the others."""


@lru_cache(maxsize=1)
def busiest(routing: Routing, layer: int) -> Mapping[int, float]:
    """Shares of experts, the busiest first; empty without tables that fit the file."""
    counts = [rows[layer] for rows in routing.tables.counts if layer < len(rows)]
    experts = routing.shape.num_experts
    if not counts or any(len(row) != experts for row in counts):
        return {}
    totals = [sum(column) for column in zip(*counts, strict=True)]
    total = sum(totals) or 1
    return {e: totals[e] / total for e in sorted(range(experts), key=lambda e: -totals[e])}


def colours(experts: Sequence[int]) -> Mapping[int, int]:
    """The colour of each expert of a token: by its number, or the next one that is free."""
    found: dict[int, int] = {}
    for expert in experts[: len(LETTERS)]:
        own = (number % len(LETTERS) for number in range(expert, expert + len(LETTERS)))
        found[expert] = next(colour for colour in own if colour not in found.values())
    return found


@dataclass(frozen=True, slots=True)
class Highlight:
    """Which tokens in view have which colour."""

    first: int
    """Number of the first token in view."""
    chosen: Sequence[tuple[int, ...]]
    """Of the tokens from ``first`` on, the largest weight first."""
    colours: Mapping[int, int]
    """Of the experts of the token at the cursor; all others are grey."""
    cursor: int
    """Number of the token at the cursor."""
    expert: int | None = None
    """The only highlighted expert; ``None``: those of the token at the cursor."""

    @property
    def colour(self) -> int:
        """That of the only highlighted expert."""
        own = (self.expert or 0) % len(LETTERS)
        return own if self.expert is None else self.colours.get(self.expert, own)

    def choice(self, token: int) -> tuple[int, ...]:
        """Experts of a token, the largest weight first; empty outside of the view."""
        at = token - self.first
        return self.chosen[at] if 0 <= at < len(self.chosen) else ()

    def paint(self, token: int) -> tuple[str, str]:
        """A token's role, and the letter under it."""
        chosen = self.choice(token)
        if self.expert is None:
            colour = self.colours.get(chosen[0]) if chosen else None
            role, mark = (_REST, ".") if colour is None else (f"token:{colour}", LETTERS[colour])
        elif self.expert in chosen:
            kind, mark = ("lit", "^") if chosen[0] == self.expert else ("also", "'")
            role = f"{kind}:{self.colour}"
        else:
            role, mark = _REST, " "
        return "cursor" if token == self.cursor else role, mark


def text_lines(
    lines: Sequence[TextLine], light: Highlight, slices: Sequence[str], width: int, *, letters: bool
) -> list[Line]:
    """With ``letters`` each line has one below it."""
    found: list[Line] = []
    for line in lines:
        if (number := line.slice_number) is not None:
            name = slices[number] if number < len(slices) else f"slice {number}"
            text = f"── {shortened(name, max(4, width - 8))} "
            rule = "─" * max(0, width - len(text))
            found.append([Span(text, "accent"), Span(rule, "faint")])
            continue
        cells, marks = [], ""
        for piece in line.pieces:
            role, mark = light.paint(piece.token)
            faint = role == _REST and piece.text == NEWLINE
            cells.append((piece.text, "faint" if faint else role))
            word = piece.text.lstrip(" ")  # the letter is below its first character
            blanks = len(piece.text) - len(word) if word else 0
            marks += f"{' ' * blanks}{mark}".ljust(piece.width)
        found.append(merged(cells))
        if letters:
            found.append([Span(marks, "accent" if light.expert is not None else "dim")])
    return found


def legend(light: Highlight, shares: Mapping[int, float], width: int, *, letters: bool) -> Line:
    """Experts with a colour, and as many of the busiest as fit."""
    line: Line
    largest = also = rest = ""
    if letters:
        largest = "^ "
        also = "' "
        rest = ". "
    if light.expert is not None:
        line = [
            dim("  only expert "),
            Span(f" {light.expert} ", f"lit:{light.colour}"),
            dim(f"   {largest}"),
            Span("largest weight", f"lit:{light.colour}"),
            dim(f"   {also}"),
            Span("also chosen", f"also:{light.colour}"),
            Span("   not chosen", _REST),
        ]
        return pad(line, width)
    line = [dim("  this token ")]
    with_shares = len(light.colours) * (9 + 2 * letters) + 34 < width and len(shares) > 0
    for expert, colour in light.colours.items():
        text = f" {LETTERS[colour]} {expert} " if letters else f" {expert} "
        of_all = f" {shares[expert]:.0%} " if with_shares else ""
        line += [Span(" "), Span(text, f"token:{colour}"), dim(of_all)]
    line.append(Span(f"  {rest}others", _REST))
    for at, (expert, share) in enumerate([*shares.items()][: len(LETTERS)]):
        head = dim("" if at else "   busiest")
        part = [head, Span(f"  {expert}"), dim(f" {share:.0%}")]
        if line_width([*line, *part]) > width:
            break
        line += part
    return pad(line, width)


def title(
    routing: Routing, layer: int, token: int, width: int, experts: Sequence[int] = ()
) -> Line:
    """The layer, the token at the cursor and its slice; the model if there is room.

    ``experts``: the chosen one first, if any.
    """
    shape = routing.shape
    at = next(iter(routing.slices_of(token, token + 1)), 0)
    name = routing.slices[at] if at < len(routing.slices) else ""
    which, of_all = f" {layer + 1} of {len(shape.layers)}   token ", f" of {routing.tokens:,}   "
    left: Line = [Span(f"  {shape.layer_names[layer]}", "title")]
    left += in_turn(which, f"{token:,}", of_all, role="title")
    if experts:
        left += [*in_turn("expert ", f"{experts[0]}", role="title"), Span("   ")]
    if name:
        left += in_turn("slice ", shortened(name, 24), role="title")
    about = "  ".join(part for part in (routing.model, routing.dtype) if part)
    room = width - line_width(left) - 4
    right = [Span(f"{shortened(about, room)} ", "faint")] if about and room >= 8 else []
    return spread(left, right, width)


def panel(
    routing: Routing,
    layer: int,
    token: int,
    own: Mapping[int, int],
    glyphs: Glyphs,
    width: int,
    rows: int,
) -> list[Line]:
    """The panel at the text: the token at the cursor, its experts, and as many layers as fit.

    ``own``: the colour of each of its experts. ``BadRouting``: the file is damaged there.
    """
    choices = [routing.choice(at, token) for at in range(len(routing.shape.layers))]
    identity = f"id {routing.token_ids(token, token + 1)[0]:,}  window {routing.window_of(token):,}"
    text = routing.text(token, token + 1, 256)[0]
    lines: list[Line] = [
        [Span(shown_token(text, max(4, width - 14)), "title")],
        [dim(identity)],
        *([[]] if rows >= 18 else []),
        [dim("expert"), dim("weight".rjust(width - 6))],
        *_experts(choices[layer], own, glyphs, width),
        *_facts(choices[layer], routing.shape.num_experts, width),
    ]
    room = rows - len(lines)
    if room >= 3:
        lines += [[], *_layers(routing.shape.layer_names, choices, layer, width, room - 1)]
    return [pad(line, width) for line in lines[:rows]]


def _experts(choice: Choice, own: Mapping[int, int], glyphs: Glyphs, width: int) -> list[Line]:
    if not choice.experts:
        return [[Span("none chosen", "warn")]]
    top = max((weight for weight in choice.weights if weight > 0), default=1.0)
    room = max(1, width - _NUMBER - 1 - _WEIGHT)
    lines = []
    for expert, weight in zip(choice.experts, choice.weights, strict=True):
        colour = own.get(expert)
        share = weight / top if math.isfinite(weight) and math.isfinite(top) else 0.0
        drawn = Span(bar(share, room, glyphs), "curve" if colour is None else f"ink:{colour}")
        number = pad([Span(f"{expert}")], _NUMBER, "right")
        weights = pad([Span(words.index(weight))], _WEIGHT, "right")
        lines.append([*number, Span(" "), drawn, *weights])
    return lines


def _facts(choice: Choice, experts: int, width: int) -> list[Line]:
    margin, entropy = choice.margin, choice.entropy
    text = words.index(margin) if not 0 < margin < 0.005 else words.no_zero(f"{margin:.1g}")
    shown = Span(f"{text:<6}", "warn" if margin < _MARGIN_IS_SMALL else "value")
    most = f"of {math.log(experts):.2f}" + (" nats" if width >= 28 else "")
    lines = []
    for word, value, span, more in (
        ("margin  ", margin, shown, "to the first left out" if width >= 36 else ""),
        ("entropy ", entropy, Span(f"{words.decimal(entropy):<6}"), most),
    ):
        rest = [Span("unknown", "faint")] if math.isnan(value) else [span, Span(more, "faint")]
        lines.append([dim(word), *rest])
    return lines


def _layers(
    names: Sequence[str], choices: Sequence[Choice], layer: int, width: int, room: int
) -> list[Line]:
    label = max(4, min(8, max(map(len, names)))) + 2
    shown = _around(layer, len(names), room - 1)
    more = len(names) - len(shown)
    lines: list[Line] = [[dim(f"  {'layer':<{label}}experts")]]
    if more:
        lines[0].append(Span(f"  {more} more", "faint"))
    for at in shown:
        experts = choices[at].experts
        of_name, of_first, of_others = _HERE if at == layer else _ELSEWHERE
        first = f"{experts[0]:>3}" if experts else "-"
        name = pad([Span(names[at], of_name)], label)
        line: Line = [cursor(at == layer), *name, Span(first, of_first)]
        for expert in experts[1:]:
            part = Span(f" {expert:>3}", of_others)
            if line_width(line) + len(part.text) > width:
                break
            line.append(part)
        lines.append(line)
    return lines


def _around(middle: int, count: int, room: int) -> range:
    room = max(1, min(room, count))
    first = max(0, min(middle - room // 2, count - room))
    return range(first, first + room)


def without_probe(width: int, problem: str, *, empty: bool) -> list[Line]:
    """Why the screen is empty, and the command that makes a probe.

    ``problem``: why the file cannot be read; ``empty``: the file has no tokens.
    """
    why = problem or (
        "the probe of this run ended before its first token"
        if empty
        else "this run has no probe: which token chose which expert is not known"
    )
    how: Line = [
        Span("  moe-microscope probe MODEL TEXT", "accent"),
        dim("  makes one; then open its folder"),
    ]
    first = [Span(f"  {why}", "warn" if problem or empty else "value")]
    return [pad([], width), pad(first, width), pad(how, width)]
