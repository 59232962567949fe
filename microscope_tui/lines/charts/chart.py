"""One chart over time as data: curves, scale and title.

Numbers only; ``app/renderables/charts.py`` draws it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from microscope_tui.lines import words
from microscope_tui.lines.spans import Line, Span, line_width, pad, width_of
from microscope_tui.watch import Column

GUTTER = 7
"""Cells left of a chart, with the labels of its y axis."""
SMOOTHINGS = (0.0, 0.6, 0.9)
"""Smoothing weights, in the order of the key that cycles through them."""
_WILD = 20.0  # larger spikes (in usual ranges) would flatten the rest
_USUAL = 0.95


@dataclass(frozen=True, slots=True)
class Curve:
    """One series of a chart. ``edge`` is the value of a column that is drawn."""

    steps: Sequence[int]
    """Positions of the columns."""
    columns: Sequence[Column]
    role: str = "value"
    edge: str = "mean"
    """``low``, ``mean`` or ``high``: dips, the usual, or spikes."""

    @property
    def values(self) -> list[float]:
        """One value per column; non-finite values are gaps."""
        values = [float(getattr(column, self.edge)) for column in self.columns]
        return [value if math.isfinite(value) else math.nan for value in values]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart over one time axis."""

    name: str
    curves: Sequence[Curve]
    """The curves; the title shows the value of the last one."""
    now: float | None = None
    """The exact value at the shown step."""
    note: str = ""
    bottom: float | None = 0.0
    """Lower end of the scale; ``None`` fits the curves."""
    top: float | None = None
    limits: Sequence[tuple[float, str]] = ()
    """Reference levels, each with a role."""
    points: Sequence[tuple[int, float]] = ()
    """Single measurements: step and value."""
    spell: Callable[[float | None], str] = words.decimal
    ends: tuple[str, str] | None = None
    """Labels of the lower and the upper end, if they differ from the drawn numbers."""
    nothing: str = "not measured in this window"
    """Text for an empty chart."""

    @property
    def measured(self) -> bool:
        """Whether there is anything to draw."""
        return any(v == v for curve in self.curves for v in curve.values) or bool(self.points)

    def scale(self) -> tuple[float, float, float | None]:
        """Both ends of the y axis, and the highest value if it lies beyond."""
        values = sorted(v for curve in self.curves for v in curve.values if v == v)
        values += [v for _, v in self.points if math.isfinite(v)]
        values.sort()
        if not values:
            return self.bottom or 0.0, self.top or 1.0, None
        bottom = min(values) if self.bottom is None else self.bottom
        top, beyond = max(values) if self.top is None else self.top, None
        usual = values[int(_USUAL * (len(values) - 1))]
        if self.top is None and top - bottom > _WILD * (usual - bottom) > 0:
            top, beyond = usual + (usual - bottom), top
        if not top > bottom:
            bottom, top = (
                (bottom - 0.5, bottom + 0.5) if self.bottom is None else (bottom, bottom + 1.0)
            )
        return bottom, top, beyond

    def title(self, step: int, smoothing: float, width: int, *, focused: bool) -> Line:
        """The name, the value at ``step``, and how it is drawn, in exactly ``width`` cells."""
        _, _, beyond = self.scale()
        value = self.spell(self.now) if self.now is not None else ""
        line = [Span("▶ " if focused else "  ", "accent")]
        line += [Span(self.name, "accent" if focused else "value")]
        line += [Span(f"   {value}", "title"), Span(f" at {step:,}", "dim")] if value else []
        said = [f"peak {words.short_number(beyond)} beyond"] if beyond is not None else []
        said += [f"smoothing {smoothing:g}"] if smoothing else []
        return noted(line, [*said, self.note], width)


def noted(line: Line, notes: Sequence[str], width: int) -> Line:
    """``line`` followed by the notes that fit, most important first."""
    line = list(line)
    for text in filter(None, notes):
        if line_width(line) + 3 + width_of(text) <= width:
            line.append(Span(f"   {text}", "dim"))
    return pad(line, width)


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Bias-corrected exponential moving average; gaps stay."""
    out, mean, known = [], 0.0, 0.0
    for value in values:
        if value != value:
            out.append(math.nan)
            continue
        mean, known = weight * mean + (1 - weight) * value, weight * known + (1 - weight)
        out.append(mean / known)
    return out


def tick_text(value: float, span: float) -> str:
    """A label of the y axis, in at most six characters, as fine as the axis needs."""
    if abs(value) >= 1000:
        return words.short_number(value)
    if value == 0:
        return "0"
    if abs(value) < 0.001 or 0 < span < 0.005:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e+")
    digits = 0 if span >= 50 else 1 if span >= 5 else 2 if span >= 0.05 else 3
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if 0 < abs(value) < 1 else text
