"""Where two probes chose differently: by layer, by margin, and which experts swapped."""

from collections.abc import Sequence
from itertools import zip_longest

from microscope_tui.draw.columns import Column, Table
from microscope_tui.draw.glyphs import Glyphs, bar
from microscope_tui.draw.spans import Line, Span, cursor, dim, pad, shortened, wrap
from microscope_tui.draw.words import listed
from microscope_tui.extensions.anatomy.compare import LayerMismatch, Mismatch
from microscope_tui.runlog import plural

_GAP = 2
_MOST_BAR = 100
_LEAST_BAR = 4
MOST_SWAPS = 10


def head_lines(found: Mismatch, columns: int) -> list[Line]:
    """The two shares: of the choices, and of the tokens."""
    layers = sum(layer.compared > 0 for layer in found.layers)
    of = f" of the choices of {found.tokens:,} tokens in {layers:,} layers differ"
    tokens = " of the tokens are routed differently in at least one layer"
    shares = (found.share, of), (found.tokens_differing / found.tokens, tokens)
    return [pad([Span(percent(share)), dim(text)], columns) for share, text in shares]


def finding_lines(found: Mismatch, columns: int) -> list[Line]:
    """What was compared, where differences begin, and what explains them."""
    texts = []
    if found.tokens < found.total:
        texts.append(
            f"{found.tokens:,} of {found.total:,} tokens are compared: A has choices of "
            f"{found.routed('A'):,}, B of {found.routed('B'):,}"
        )
    if found.differing:
        origin = found.origin
        texts.append(
            f"{origin.name} is the first layer that differs in {origin.first:,} of the "
            f"{found.tokens_differing:,} tokens"
        )
    for files, what in (
        ("A", "choices in B and none in A"),
        ("B", "choices in A and none in B"),
        ("AB", "no choices in A and B"),
    ):
        if names := found.layers_without(files):
            verb = "has" if len(names) == 1 else "have"
            texts.append(f"{listed(names)} {verb} {what}")
    for shift in sorted({layer.shift for layer in found.layers} - {0}):
        names = [layer.name for layer in found.layers if layer.shift == shift]
        word = "late" if shift > 0 else "early"
        texts.append(f"B is {plural(abs(shift), 'token')} {word} in {listed(names)}")
    texts += [f"{file}: {layer} is a copy of {other}" for file, layer, other in found.copies]
    if found.moved:
        places = listed([f"{other} in {layer}" for layer, other in found.moved.items()])
        texts.append(f"B has the choices that A has for {places}")
    return [[Span(line)] for text in texts for line in wrap(text, columns)]


def layer_lines(
    found: Mismatch, columns: int, glyphs: Glyphs, selected: int | None = None
) -> list[Line]:
    """The share of each layer as a bar; ``selected``: index of the one at the cursor, if there is
    one.
    """
    label = min(max(len(layer.name) for layer in found.layers), columns // 3)
    labels = []
    for index, layer in enumerate(found.layers):
        role = "value" if index == selected else "dim"
        line = [Span(shortened(layer.name, label), role)]
        if selected is not None:
            line.insert(0, cursor(index == selected))
        labels.append(line)
    if selected is not None:
        label += 2
    return _with_bars(labels, label, [x.share for x in found.layers], columns, glyphs)


def margin_lines(found: Mismatch, columns: int, glyphs: Glyphs) -> list[Line]:
    """The smaller the margin, the easier a choice changes."""
    if not found.margins:
        return [[dim("no margins")]]
    ranges = [f"{one.low:.2g} to {one.high:.2g}" for one in found.margins]
    shares = [one.differing / one.compared for one in found.margins]
    label = min(max(map(len, ranges)), columns // 2)
    return _with_bars([[dim(text)] for text in ranges], label, shares, columns, glyphs)


def _with_bars(
    labels: Sequence[Line],
    label: int,
    shares: Sequence[float | None],
    columns: int,
    glyphs: Glyphs,
) -> list[Line]:
    most = max(share or 0.0 for share in shares)
    lines = []
    room = min(_MOST_BAR, columns - label - 6 - 2 * _GAP)
    parts = [Column("label", label, gap=0), Column("share", 6, "right")]
    if room >= _LEAST_BAR and most:
        parts.append(Column("bar", room))
    table = Table(parts, columns)
    for line, share in zip(labels, shares, strict=True):
        number = Span(percent(share), "value" if share else "faint")
        drawn = Span(bar((share or 0.0) / (most or 1.0), max(0, room), glyphs), "accent")
        lines.append(table.line({"label": line, "share": [number], "bar": [drawn]}))
    return lines


def swap_lines(
    swaps: Sequence[tuple[LayerMismatch, int, int, int]],
    columns: int,
    glyphs: Glyphs,
    *,
    named: bool = True,
) -> list[Line]:
    """Layer, expert in A, expert in B, and how often; ``named``: with the name of the layer."""
    if not swaps:
        return [[dim("none")]]
    arrow = "->" if glyphs is Glyphs.ASCII else "→"
    name = 2 + max(len(layer.name) for layer, *_ in swaps)
    size = max(len(str(expert)) for _, *pair, _ in swaps for expert in pair)
    most = max(len(f"{times:,}") for *_, times in swaps)
    lines = []
    for layer, old, new, times in swaps:
        often = "time, " if times == 1 else "times,"
        line = [
            Span(f"{old:>{size}} {arrow} {new:<{size}}  {times:>{most},} {often}"),
            dim(f" {percent(times / layer.compared)} of {layer.name}'s choices"),
        ]
        if named:
            line = [*pad([dim(layer.name)], name), *line]
        lines.append(pad(line, columns))
    return lines


def mismatch_text(found: Mismatch, columns: int, glyphs: Glyphs) -> list[Line]:
    """All of it below each other, as a command prints it."""
    lines = [*head_lines(found, columns), *finding_lines(found, columns)]
    if not found.differing:
        return lines
    lines += [[], [dim("layer: share of its choices that differ")]]
    lines += layer_lines(found, columns, glyphs)
    if found.margins:
        lines += [[], [dim(f"margin in {found.margins_of}, in tenths of the choices")]]
        lines += margin_lines(found, columns, glyphs)
    lines += [[], [dim("most frequent swaps, from A to B")]]
    return lines + swap_lines(found.top_swaps(MOST_SWAPS), columns, glyphs)


def beside_each_other(
    found: Mismatch, columns: int, rows: int, glyphs: Glyphs, selected: int, first: int
) -> list[Line]:
    """Layers from ``first`` on; at the right margins and the swaps of ``selected``."""
    left_width = (columns - _GAP) // 2
    right_width = columns - _GAP - left_width
    layer = found.layers[selected]
    left = [
        [dim("  layer: share that differs")],
        *layer_lines(found, left_width, glyphs, selected)[first:],
    ]
    pairs = [(layer, old, new, times) for (old, new), times in layer.swaps.most_common(rows)]
    right = [
        [dim(f"margin in {found.margins_of}, in tenths of the choices")],
        *margin_lines(found, right_width, glyphs),
        [],
        [dim(f"swaps in {layer.name}, from A to B")],
        *swap_lines(pairs, right_width, glyphs, named=False),
    ]
    nothing: Line = []
    both = zip_longest(left[:rows], right[:rows], fillvalue=nothing)
    return [[*pad(a, left_width), Span(" " * _GAP), *pad(b, right_width)] for a, b in both]


def without_probe(problem: str, columns: int) -> list[Line]:
    """Why there is nothing to compare (``problem``), and how to get it."""
    lines: list[Line] = [[Span(line, "value")] for line in wrap(problem, columns)]
    lines.append([])
    for text, role in (
        ("A probe is what every router chose for every token of a text:", "dim"),
        ("moe-microscope probe MODEL TEXT", "accent"),
        (
            "Probe the same text twice (another precision, quantised, fine-tuned), open one, and "
            "pin the other with p on 4 runs. Or, without a screen:",
            "dim",
        ),
        ("moe-microscope mismatch A B", "accent"),
    ):
        indent = "  " if role == "accent" else ""
        lines += [[Span(indent + line, role)] for line in wrap(text, columns - len(indent))]
    return lines


def percent(share: float | None) -> str:
    """``3.10%``; never 0 for something, or 100 for less than all; empty for no value."""
    if share is None:
        return ""
    if 0 < share < 1e-4:
        return "<.01%"
    if 0.9995 <= share < 1:
        return ">99.9%"
    return f"{share:.2%}" if share < 0.1 else f"{share:.1%}"
