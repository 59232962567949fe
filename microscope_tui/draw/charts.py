"""Charts over time as data: curves, scale and title; which ones a screen has, and where.

``app/charts.py`` draws them. The focused chart is always shown; charts without room are named.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from microscope_tui.diagnosis.rules.collapse import CollapseLimits
from microscope_tui.draw import words
from microscope_tui.draw.spans import (
    ROLE_OF_SEVERITY,
    Line,
    Span,
    cursor,
    dim,
    first_fitting,
    line_width,
    pad,
    width_of,
)
from microscope_tui.watch import Column, LayerView, RunView

GUTTER = 7
"""Cells left of a chart, with the labels of its y axis."""
SECOND = "ink:0"
_NAMES = 17  # cells right of a chart with the names of its lines
SMOOTHINGS = (0.0, 0.6, 0.9)
LOG_FROM = 100.0  # times the median: a linear axis would show a spike and a flat line
_DECADES = 12
_ONE_AXIS = 5.0  # times the height of a curve: a larger axis makes it flat
_WILD = 20.0  # larger spikes (in usual ranges) would flatten the rest
_USUAL = 0.95
_TWO_STACKS_FROM = 72
_GAP = 2
_GOOD_HEIGHT = 5  # a title, three lines, and one below
_LEAST_HEIGHT = 4
_ALL_FROM = 3.5  # minimum height of a chart before charts are left out
_BEFORE = 12  # columns before an onset that give the usual value
_LEAST = 3
_SPREADS = 3.0


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a chart."""

    steps: Sequence[int]
    """The first step of each column; where the axis is not of steps, positions on it."""
    columns: Sequence[Column]
    role: str = "value"
    """Its colour, see ``spans``."""
    edge: str = "mean"
    """``low``, ``mean`` or ``high``: dips, the usual, or spikes."""
    name: str = ""
    """Written at the end of the line."""

    @property
    def values(self) -> list[float]:
        """Non-finite values are gaps."""
        values = [float(getattr(column, self.edge)) for column in self.columns]
        for at, value in enumerate(values):
            if not math.isfinite(value):
                values[at] = math.nan
        return values


class Scale(NamedTuple):
    """The y axis of a chart, in the unit of the values."""

    bottom: float
    top: float
    beyond: float | None = None
    """The highest value, if it lies beyond the top."""
    log: bool = False
    """Logarithmic; ``bottom`` is then above 0."""

    def share(self, value: float) -> float:
        """0 at the bottom, 1 at the top."""
        if not self.log:
            return (value - self.bottom) / (self.top - self.bottom)
        if value <= 0.0:
            return -1.0
        return math.log(value / self.bottom) / math.log(self.top / self.bottom)

    def text(self, value: float) -> str:
        """The label of a tick."""
        if self.log:
            return tick_text(value, 10 * value)
        return tick_text(value, self.top - self.bottom)

    @property
    def powers(self) -> Sequence[float]:
        """Powers of ten between the ends of a logarithmic axis, for lines across; empty for
        others.
        """
        if not self.log:
            return ()
        first = math.floor(math.log10(self.bottom)) + 1
        return [10.0**power for power in range(first, math.ceil(math.log10(self.top)))]


@dataclass(frozen=True, slots=True)
class Chart:
    """What one chart shows, without a size; ``app/charts.py`` draws it."""

    name: str
    curves: Sequence[Curve]
    now: float | None = None
    """Exact, at the shown step."""
    note: str = ""
    """Behind the value in the title, if there is room."""
    bottom: float | None = 0.0
    """``None`` fits the curves."""
    top: float | None = None
    """``None`` fits the curves, without spikes that would flatten the rest."""
    limits: Sequence[tuple[float, str]] = ()
    """Reference levels, each with a role."""
    points: Sequence[tuple[int, float]] = ()
    """Single measurements: step and value."""
    spell: Callable[[float | None], str] = words.decimal
    """The value in the title as text."""
    nothing: str = "not measured in this window"
    """Why it is empty, where nothing is ``measured``."""
    notes: Sequence[str] = ()
    """Before the note, each as far as there is room."""
    right: Scale | None = None
    """The axis of the last curve, if it is not that of the others."""

    @property
    def measured(self) -> bool:
        """Whether any value is a number."""
        return any(v == v for curve in self.curves for v in curve.values) or bool(self.points)

    def scale(self) -> Scale:
        """The y axis; logarithmic where a linear one would show only a spike."""
        curves = self.curves[:-1] if self.right else self.curves
        values = [v for curve in curves for v in curve.values if v == v]
        values = sorted(values + [v for _, v in self.points if math.isfinite(v)])
        if not values:
            return Scale(self.bottom or 0.0, self.top or 1.0)
        if self.top is None and values[0] >= 0.0:
            middle, highest = values[len(values) // 2], values[-1]
            if highest > LOG_FROM * middle > 0.0:
                least = next(value for value in values if value > 0.0)
                return Scale(max(least, highest / 10**_DECADES), highest, log=True)
        return self._linear(values)

    def _linear(self, values: Sequence[float]) -> Scale:
        bottom = values[0] if self.bottom is None else self.bottom
        top = values[-1] if self.top is None else self.top
        beyond = None
        usual = values[int(_USUAL * (len(values) - 1))]
        if self.top is None and top - bottom > _WILD * (usual - bottom) > 0:
            top, beyond = usual + (usual - bottom), top
        if not top > bottom:
            top = bottom + 1.0
            if self.bottom is None:  # the only value is in the middle
                top = bottom + 0.5
                bottom -= 0.5
        return Scale(bottom, top, beyond)

    def title(self, step: int, smoothing: float, width: int, *, focused: bool) -> Line:
        """The name, the value at ``step``, and how it is drawn, in exactly ``width`` cells."""
        _, _, beyond, log = self.scale()
        line = chart_name(self.name, focused)
        if self.now is not None and (value := self.spell(self.now)):
            line += [Span(f"   {value}", "title"), dim(f" at {step:,}")]
        notes = []
        if beyond is not None:
            notes.append(f"peak {words.short_number(beyond)} beyond")
        if log:
            notes.append("log axis")
        if smoothing:
            notes.append(f"smoothing {smoothing:g}")
        return noted(line, [*notes, *self.notes, self.note], width)


def names_width(width: int, *, named: bool) -> int:
    """Cells right of a chart for the names of its curves; 0 where they would take too much."""
    return _NAMES if named and width > 3 * _NAMES else 0


def beside(first: Chart, second: Chart) -> Chart:
    """Two numbers in one chart; the second has its own axis if one of them would be flat."""
    left, right = first.scale(), second.scale()
    bottom, top = min(left.bottom, right.bottom), max(left.top, right.top)
    heights = [scale.top - scale.bottom for scale in (left, right)]
    where = ""
    axes: dict[str, Any] = {"bottom": bottom, "top": top}
    if left.log or right.log or top - bottom > _ONE_AXIS * min(heights):
        where = "right axis, log" if right.log else "right axis"
        axes = {"right": right}
    now = f"and {second.name} {second.spell(second.now)}"
    return replace(
        first,
        curves=[
            *(replace(curve, name=first.name) for curve in first.curves),
            *(replace(curve, name=second.name, role=SECOND) for curve in second.curves),
        ],
        notes=[now, where, second.note],
        **axes,
    )


def chart_name(name: str, focused: bool) -> Line:
    """The beginning of a title, marked if keys act on this chart."""
    return [cursor(focused), Span(name, "accent" if focused else "value")]


def noted(line: Line, notes: Sequence[str], width: int) -> Line:
    """``line`` followed by the notes that fit, most important first."""
    line = list(line)
    for text in filter(None, notes):
        if line_width(line) + 3 + width_of(text) <= width:
            line.append(dim(f"   {text}"))
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
    """At most six characters, as fine as an axis of this ``span`` needs."""
    if abs(value) >= 1000:
        return words.short_number(value) if abs(value) < 1e14 else f"{value:.0e}"
    if value == 0:
        return "0"
    if abs(value) < 0.001 or 0 < span < 0.005:
        texts = (f"{value:.{n}e}".replace("e-0", "e-").replace("e+0", "e+") for n in (1, 0))
        return first_fitting(texts, 6, "")
    digits = sum(not span >= least for least in (50, 5, 0.05))
    text = f"{value:.{digits}f}"
    return words.no_zero(text) if 0 < abs(value) < 1 else text


class Placed(NamedTuple):
    """A chart in a stack, and its size in cells."""

    name: str
    """Key of the chart."""
    width: int
    height: int
    last: bool
    """Last of its stack: the axis labels are below it."""


class ChartLayout(NamedTuple):
    stacks: Sequence[Sequence[Placed]]
    """From left to right; in each from the top."""
    hidden: Sequence[str]
    """Names of the charts that have no room."""


def arranged(
    stacks: Sequence[Sequence[str]],
    focus: str,
    size: tuple[int, int],
    *,
    enlarged: bool = False,
    first: int = 0,
) -> ChartLayout:
    """In ``size`` cells; if ``enlarged``, the one in focus alone.

    ``stacks``: names, the most useful first; ``first``: cells of the first of two; 0 for half.
    """
    columns, rows = size
    names = [name for stack in stacks for name in stack]
    stacks = [[focus]] if enlarged else [stack for stack in stacks if stack]
    if columns < _TWO_STACKS_FROM and len(stacks) > 1:  # the first of each, the second of each …
        longest = max(map(len, stacks))
        stacks = [[stack[at] for at in range(longest) for stack in stacks if at < len(stack)]]
    widths = _stack_widths(columns, len(stacks), first)
    placed = [
        _stacked(stack, names, focus, width, rows)
        for stack, width in zip(stacks, widths, strict=True)
    ]
    shown = {chart.name for stack in placed for chart in stack}
    return ChartLayout(placed, [name for name in names if name not in shown])


def plot_area(columns: int, stacks: int = 1, first: int = 0) -> tuple[int, int]:
    """Start and width of the time axis in the last of ``stacks``."""
    if columns < _TWO_STACKS_FROM:
        stacks = 1
    *others, last = _stack_widths(columns, stacks, first)
    return sum(others) + len(others) * _GAP + GUTTER, max(1, last - GUTTER)


def _stack_widths(columns: int, stacks: int, first: int) -> Sequence[int]:
    half = (columns - _GAP * (stacks - 1)) // max(1, stacks)
    if stacks == 2 and first > 0:
        return [first, columns - _GAP - first]
    return [half] * stacks


def _stacked(
    names: Sequence[str], order: Sequence[str], focus: str, width: int, rows: int
) -> Sequence[Placed]:
    all_fit = rows - 1 >= _ALL_FROM * len(names)
    room = len(names) if all_fit else max(1, (rows - 1) // _LEAST_HEIGHT)
    shown = list(names[:room])
    if focus in names and focus not in shown:
        shown[-1] = focus
    shown.sort(key=order.index)
    height, rest = divmod(rows - 1, len(shown) + 1)  # the first one twice as high …
    heights = [2 * height + rest, *[height] * (len(shown) - 1)]
    if len(shown) == 1 or height < _GOOD_HEIGHT:  # … if all are high enough
        height, rest = divmod(rows - 1, len(shown))
        heights = [height + (at < rest) for at in range(len(shown))]
    heights[-1] += 1
    return [
        Placed(name, width, height, last=name == shown[-1])
        for name, height in zip(shown, heights, strict=True)
    ]


def _balance(name: str, curves: Sequence[Curve], now: float | None, note: str) -> Chart:
    limits = CollapseLimits()
    marks = (limits.warn, "warn"), (limits.critical, "crit")
    return Chart(name, curves, now, note, top=1.0, limits=marks, spell=words.index)


def layer_charts(view: RunView, layer: LayerView) -> Mapping[str, Chart]:
    """The charts of a layer, most useful first; no drops in a dropless run."""
    steps, mean = view.timeline.axis, layer.mean_entropy
    curves = [Curve(steps, layer.balance_history, edge="low")]
    note = words.judged(layer) or "1 is even"
    balance = _balance("balance c", curves, layer.balance, note)
    entropies = [
        Curve(steps, layer.mean_entropy_history, role="dim"),
        Curve(steps, layer.entropy_history),
    ]
    average = f"mean {words.decimal(mean)}" if mean is not None else ""
    most = words.most_entropy(layer)
    why = "not measured (docs/probe.md)"
    loads = [Curve(steps, layer.max_load_history, edge="high")]
    charts = {
        "balance": replace(balance, nothing=words.no_balance(layer)[1]),
        "entropy": Chart("entropy", entropies, layer.entropy, average, top=most, nothing=why),
        "max-load": Chart("max load", loads, layer.max_load, "1 is fair", limits=[(1.0, "dim")]),
    }
    if layer.drop_rate is not None or any(c.low == c.low for c in layer.drop_history):
        dropped = [Curve(steps, layer.drop_history, edge="high")]
        what = "share of assignments"
        charts["drop"] = Chart("dropped", dropped, layer.drop_rate, what, spell=words.percent)
    return charts


def course_chart(view: RunView, name: str, worst: Sequence[Column] = ()) -> Chart | None:
    """The loss, or the ``worst`` values of all layers; ``None`` for other numbers."""
    record, steps = view.record, view.timeline.axis
    if name == "loss":
        validated = [
            (at, x) for at, x in view.timeline.evaluations if x is not None and math.isfinite(x)
        ]
        note = ""
        if validated:
            at, value = validated[-1]
            note = f"● validation {words.decimal(value)} at {at:,}"
        losses = [Curve(steps, view.timeline.loss_history)]
        now = record.loss if record else None
        return Chart(name, losses, now, note, bottom=None, points=validated)
    if name == "balance":
        lowest, layer = min(known(view, "judged_balance"), default=(None, ""))
        balances = [Curve(steps, worst, edge="low")]
        where = "; ".join(filter(None, (layer, words.left_out(view))))
        return _balance("lowest balance c", balances, lowest, f"in {where}" if layer else "")
    if name == "max-load":
        highest, layer = max(known(view, "max_load"), default=(None, ""))
        peaks = [Curve(steps, worst, edge="high")]
        fair = f"in {layer}, 1 is fair" if layer else "1 is fair"
        return Chart("highest load", peaks, highest, fair, limits=[(1.0, "dim")])
    return None


def known(view: RunView, measure: str) -> Iterator[tuple[float, str]]:
    """The finite values of a measure, with the name of the layer."""
    for layer in view.layers:
        value = getattr(layer, measure)
        if value is not None and math.isfinite(value):
            yield value, layer.router.name


def loss_answer(view: RunView, width: int, layer: int = -1) -> Line:
    """Did the loss react to an alert, of ``layer`` if it has one?"""
    onsets = [
        (f, e) for f, _ in view.alerts for e in f.episodes if e.active and e.router_index >= 0
    ]
    if onsets:
        chosen = [pair for pair in onsets if pair[1].router_index == layer]
        finding, episode = (chosen or onsets)[0]
        name = episode.router.name if episode.router is not None else ""
        where = f" in {name}"
        since, rest = f" since {episode.onset:,}   ", _compared(view, episode.onset)
    else:
        rest = [dim("  no alert in any router")]
        if view.worst is None:
            return pad(rest, width)
        finding = view.worst[0]
        where = ""  # it concerns the whole run
        since = f" since {finding.onset:,} "
    letter = Span(f"  {finding.severity.letter} ", ROLE_OF_SEVERITY[finding.severity])
    return pad([letter, Span(f"{finding.rule}{where}"), dim(since), *rest], width)


def _compared(view: RunView, onset: int) -> Line:
    """The loss before the onset, and the highest since, against its usual spread."""
    shown = [
        (step, column)
        for step, column in zip(view.timeline.axis, view.timeline.loss_history, strict=False)
        if step <= view.step and math.isfinite(column.mean)
    ]
    before = [column.mean for step, column in shown if step < onset][-_BEFORE:]
    since = [(step, column.mean) for step, column in shown if step >= onset]
    if len(before) < _LEAST or len(since) < _LEAST:
        return [dim("too near the edge of the window to compare the loss")]
    usual = statistics.median(before)
    level = usual + _SPREADS * max(statistics.pstdev(before), 0.002 * abs(usual))
    now = statistics.median(mean for _, mean in since[-_LEAST:])
    stays = range(len(since) - _LEAST + 1)  # above the level for three columns
    rises = (since[at][0] for at in stays if all(m > level for _, m in since[at : at + _LEAST]))
    noticed = next(rises, None)
    numbers = dim(f": {words.decimal(usual)} before, {words.decimal(now)} now")
    if noticed is None:
        return [Span("the loss does not show it", "warn"), numbers]
    after = f"{noticed - onset:,} steps later" if noticed > onset else "at once"
    return [Span(f"the loss rose {after}"), numbers]
