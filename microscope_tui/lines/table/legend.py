"""The legend of the heatmap: sample cells with their values.

It uses colours or characters, like the heatmap.
"""

from collections.abc import Sequence
from itertools import groupby

from microscope_tui.lines.glyphs import Glyphs, load_glyph
from microscope_tui.lines.look import Measure
from microscope_tui.lines.spans import Line, Span, line_width, pad
from microscope_tui.lines.table.heat import FULL_BIAS, Heat, ramp_glyph, why_nothing
from microscope_tui.watch import LayerView

Sample = tuple[Sequence[int | None], str]
"""The levels of neighbouring cells, and their meaning."""

_RATIOS: Sequence[Sample] = (
    *(((None,), "0"), ((-8,), "¼"), ((-4,), "½"), ((-1, 0, 1), "fair")),
    *(((4,), "2"), ((8,), "4"), ((14,), "11 x fair")),
)
_SHARES: Sequence[Sample] = (
    ((0,), "0"),
    ((4,), "25"),
    ((8,), "50"),
    ((12,), "75"),
    ((15,), "100 %"),
)
_OCTAVES: Sequence[Sample] = (
    *(((0,), "0"), ((5,), ".1"), ((8,), ".8"), ((11,), "6"), ((13,), "25"), ((15,), "100 %")),
)
_ASCII = {"¼": ".25", "½": ".5"}
_GAP = 2


def legend(heat: Heat, width: int, glyphs: Glyphs) -> Line:
    """The samples in exactly ``width`` cells: with all values, with the ends, or nothing."""
    samples = _samples(heat.look.measure)
    for chosen, gap in ((samples, _GAP), (samples, 1), (_fewer(samples), 1)):
        line = _line(chosen, heat, gap, glyphs)
        if line_width(line) <= width:
            return pad(line, width)
    return pad([], width)


def has_legend(heat: Heat, layers: Sequence[LayerView]) -> bool:
    """Whether any layer has cells."""
    return any(why_nothing(layer, heat.look, heat.terms) is None for layer in layers)


def _samples(measure: Measure) -> Sequence[Sample]:
    match measure:
        case Measure.BIAS:
            quarter, half, full = FULL_BIAS / 4, FULL_BIAS / 2, FULL_BIAS
            return (
                *(((-16,), f"-{full:g}"), ((-8,), f"-{half:.2g}"), ((-1, 0, 1), "mean")),
                *(((4,), f"+{quarter:.2g}"), ((8,), f"+{half:.2g}"), ((16,), f"+{full:g}")),
            )
        case Measure.DIFFERENCE:
            same = {"fair": "same", "11 x fair": "11 x"}
            return [(levels, same.get(text, text)) for levels, text in _RATIOS]
        case Measure.SHARE | Measure.OVERFLOW:
            return _SHARES
        case Measure.LOG_SHARE:
            return _OCTAVES
        case _:
            return _RATIOS


def _fewer(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Both ends and the middle, the fair value."""
    return [samples[0], samples[len(samples) // 2], samples[-1]]


def _line(samples: Sequence[Sample], heat: Heat, gap: int, glyphs: Glyphs) -> Line:
    line: Line = []
    for levels, text in samples:
        cells = [_cell(level, heat) for level in levels]
        if not heat.colour:  # neighbours that look alike are one
            cells = [next(group) for _, group in groupby(cells, key=lambda cell: cell.text)]
        label = _ASCII.get(text, text) if glyphs is Glyphs.ASCII else text
        line += [*([Span(" " * gap, "")] if line else []), *cells, Span(f" {label}", "dim")]
    return line


def _cell(level: int | None, heat: Heat) -> Span:
    """One sample, two characters wide where it is a colour alone."""
    if heat.look.measure in (Measure.SHARE, Measure.LOG_SHARE, Measure.OVERFLOW):
        return Span("  " if heat.colour else ramp_glyph(level or 0), f"seq:{level or 0}")
    if level is None:
        return Span("×" if heat.colour else load_glyph(None), "heat:dead")
    return Span("  " if heat.colour else load_glyph(level), f"heat:{level}")
