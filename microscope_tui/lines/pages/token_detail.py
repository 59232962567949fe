"""The token at the cursor: what its router chose in the shown layer, and in all layers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from microscope_tui.lines import words
from microscope_tui.lines.glyphs import Glyphs, bar
from microscope_tui.lines.pages.token_cells import shown_token
from microscope_tui.lines.pages.token_text import Busiest
from microscope_tui.lines.spans import Line, Span, line_width, pad
from microscope_tui.routing import Choice, Routing

_NUMBER = 5
_WEIGHT = 5
_MARGIN_IS_SMALL = 0.01


@dataclass(frozen=True, slots=True)
class TokenDetail:
    """The token and its choice in every layer."""

    token: int
    text: bytes
    token_id: int
    window: int
    choices: Sequence[Choice]
    layer: int

    @property
    def choice(self) -> Choice:
        """In the shown layer."""
        return self.choices[self.layer]


def detail_of(routing: Routing, layer: int, token: int) -> TokenDetail:
    """Read what the panel shows.

    Raises:
        BadRouting: the file is damaged there.
    """
    return TokenDetail(
        token,
        routing.text(token, token + 1, 256)[0],
        routing.token_id(token),
        routing.window_of(token),
        [routing.choice(at, token) for at in range(len(routing.shape.layers))],
        layer,
    )


def panel(
    routing: Routing, detail: TokenDetail, busy: Busiest, glyphs: Glyphs, width: int, rows: int
) -> list[Line]:
    """The panel beside the text: the token, its experts, and as many layers as fit."""
    name = Span(shown_token(detail.text, max(4, width - 14)), "title")
    lines: list[Line] = [
        [name],
        [Span(f"id {detail.token_id:,}  window {detail.window:,}", "dim")],
        *([[]] if rows >= 18 else []),
        [Span("expert", "dim"), Span("weight".rjust(width - 6), "dim")],
        *_experts(detail.choice, busy, glyphs, width),
        *_facts(detail.choice, routing.shape.num_experts, width),
    ]
    room = rows - len(lines)
    if room >= 3:
        lines += [[], *_layers(routing, detail, width, room - 1)]
    return [pad(line, width) for line in lines[:rows]]


def brief(detail: TokenDetail, routing: Routing, width: int) -> list[Line]:
    """The same in three lines, below the text."""
    choice = detail.choice
    chosen = [
        f"{expert} {words.index(weight)}"
        for expert, weight in zip(choice.experts, choice.weights, strict=True)
    ]
    first: Line = [Span(" "), Span(shown_token(detail.text, 16), "title"), Span("  ")]
    first.append(Span("  ".join(chosen) if chosen else "no expert"))
    others: Line = [Span(" all layers ", "dim")]
    names = routing.shape.layer_names
    for at in _around(detail.layer, len(names), max(1, (width - 14) // 9)):
        expert = detail.choices[at].experts[:1]
        role = "accent" if at == detail.layer else "value"
        others += [
            Span(f" {names[at]} ", "dim"),
            Span(str(expert[0]) if expert else "-", role),
        ]
    facts = [span for line in _facts(choice, routing.shape.num_experts, 16) for span in line]
    return [pad(first, width), pad([Span(" "), *facts], width), pad(others, width)]


def _experts(choice: Choice, busy: Busiest, glyphs: Glyphs, width: int) -> list[Line]:
    """The chosen experts with their weights as bars, the largest first."""
    if not choice.experts:
        return [[Span("none chosen", "warn")]]
    top = max((weight for weight in choice.weights if weight > 0), default=1.0)
    room = max(1, width - _NUMBER - _WEIGHT - 1)
    lines: list[Line] = []
    for expert, weight in zip(choice.experts, choice.weights, strict=True):
        colour = busy.colour(expert)
        share = weight / top if math.isfinite(weight) and math.isfinite(top) else 0.0
        lines.append(
            [
                *pad([Span(f"{expert}", "value")], _NUMBER - 1, "right"),
                Span(" "),
                Span(bar(share, room, glyphs), "curve" if colour is None else f"ink:{colour}"),
                *pad([Span(words.index(weight), "value")], _WEIGHT + 1, "right"),
            ]
        )
    return lines


def _facts(choice: Choice, experts: int, width: int) -> list[Line]:
    """The margin to the first expert that was left out, and the entropy."""
    margin, entropy = choice.margin, choice.entropy
    small = margin < _MARGIN_IS_SMALL
    said = words.index(margin) if not 0 < margin < 0.005 else f"{margin:.1g}".replace("0.", ".", 1)
    lines: list[Line] = [[Span("margin  ", "dim"), Span("unknown", "faint")]]
    if not math.isnan(margin):
        lines = [[Span("margin  ", "dim"), Span(f"{said:<6}", "warn" if small else "value")]]
        if width >= 36:
            lines[0].append(Span("to the first left out", "faint"))
    if math.isnan(entropy):
        return [*lines, [Span("entropy ", "dim"), Span("unknown", "faint")]]
    most = f"of {math.log(experts):.2f}" + (" nats" if width >= 28 else "")
    return [
        *lines,
        [Span("entropy ", "dim"), Span(f"{words.decimal(entropy):<6}"), Span(most, "faint")],
    ]


def _layers(routing: Routing, detail: TokenDetail, width: int, room: int) -> list[Line]:
    """One line per layer around the shown one: its experts, the largest weight first."""
    names = routing.shape.layer_names
    label = max(4, min(8, max(map(len, names)))) + 2
    shown = _around(detail.layer, len(names), room - 1)
    more = len(names) - len(shown)
    head: Line = [Span(f"  {'layer':<{label}}experts", "dim")]
    if more:
        head.append(Span(f"  {more} more", "faint"))
    lines = [head]
    for at in shown:
        here = at == detail.layer
        line: Line = [
            Span("▶ " if here else "  ", "accent"),
            *pad([Span(names[at], "value" if here else "dim")], label),
        ]
        first, *rest = detail.choices[at].experts or (None,)
        line.append(Span("-" if first is None else f"{first:>3}", "accent" if here else "value"))
        for expert in rest:
            part = Span(f" {expert:>3}", "dim" if here else "faint")
            if line_width(line) + len(part.text) > width:
                break
            line.append(part)
        lines.append(line)
    return lines


def _around(middle: int, count: int, room: int) -> range:
    """At most ``room`` of ``count`` numbers, ``middle`` among them."""
    room = max(1, min(room, count))
    first = max(0, min(middle - room // 2, count - room))
    return range(first, first + room)
