"""The course of a run on one time axis: the loss and the routers."""

import math
import statistics
from collections.abc import Mapping, Sequence

from microscope_tui.diagnosis import DEFAULTS
from microscope_tui.lines import words
from microscope_tui.lines.charts.chart import Chart, Curve
from microscope_tui.lines.spans import ROLE_OF_SEVERITY, Line, Span, pad
from microscope_tui.watch import Column, RouterHealth, RunView

_BEFORE = 12  # columns before an onset that give the usual value
_LEAST = 3
_SPREADS = 3.0


def course_charts(view: RunView, health: RouterHealth) -> Mapping[str, Chart]:
    """By name, most useful first; without what the log does not contain."""
    record, steps, limits = view.record, view.axis, DEFAULTS.COLLAPSE
    layers = view.layers
    indices = [(x.collapse_index, x.router.name) for x in layers if x.collapse_index is not None]
    loads = [(x.max_load, x.router.name) for x in layers if _finite(x.max_load)]
    lowest, highest = min(indices, default=(None, "")), max(loads, default=(None, ""))
    validated = [(s, loss) for s, loss in view.evaluations if loss is not None and _finite(loss)]
    charts = {
        "loss": Chart(
            "loss",
            [Curve(steps, view.loss_history)],
            record.loss if record else None,
            _validation(validated),
            bottom=None,
            points=validated,
        ),
        "balance": Chart(
            "lowest balance c",
            [Curve(steps, health.balance, edge="low")],
            lowest[0],
            f"in {lowest[1]}" if lowest[1] else "",
            top=1.0,
            limits=[(limits.warn, "warn"), (limits.critical, "crit")],
            spell=words.index,
        ),
        "max-load": Chart(
            "highest load",
            [Curve(steps, health.max_load, edge="high")],
            highest[0],
            f"in {highest[1]}, 1 is fair" if highest[1] else "1 is fair",
            limits=[(1.0, "dim")],
        ),
        "gradient-norm": Chart(
            "gradient norm",
            [Curve(steps, view.grad_norm_history, edge="high")],
            record.grad_norm if record else None,
            spell=_significant,
        ),
        "learning-rate": Chart(
            "learning rate",
            [Curve(steps, view.learning_rate_history)],
            record.learning_rate if record else None,
            spell=_significant,
        ),
    }
    return {name: chart for name, chart in charts.items() if chart.measured or name == "loss"}


def loss_answer(view: RunView, width: int, layer: int = -1) -> Line:
    """Did the loss react to the routers? In numbers, since the onset of an alert.

    Args:
        layer: the layer whose alert is meant, if it has one; else the worst of all.
    """
    onsets = [
        (f, e) for f, _ in view.alerts for e in f.episodes if e.active and e.router_index >= 0
    ]
    if not onsets:
        return pad([*_of_the_run(view), Span("  no alert in any router", "dim")], width)
    chosen = [pair for pair in onsets if pair[1].router_index == layer]
    finding, episode = (chosen or onsets)[0]
    name = episode.router.name if episode.router is not None else ""
    line = [
        Span(f"  {finding.severity.letter} ", ROLE_OF_SEVERITY[finding.severity]),
        Span(f"{finding.rule} in {name}"),
        Span(f" since {episode.onset:,}   ", "dim"),
    ]
    return pad([*line, *_compared(view, episode.onset)], width)


def _of_the_run(view: RunView) -> Line:
    """The worst alert, if it concerns the whole run."""
    if view.worst is None:
        return []
    finding, _ = view.worst
    return [
        Span(f"  {finding.severity.letter} ", ROLE_OF_SEVERITY[finding.severity]),
        Span(finding.rule),
        Span(f" since {finding.onset:,} ", "dim"),
    ]


def _compared(view: RunView, onset: int) -> Line:
    """The loss before the onset, and the highest since, against its usual spread."""
    shown = [
        (step, column)
        for step, column in zip(view.axis, view.loss_history, strict=False)
        if step <= view.step and math.isfinite(column.mean)
    ]
    before = [column.mean for step, column in shown if step < onset][-_BEFORE:]
    since = [(step, column) for step, column in shown if step >= onset]
    if len(before) < _LEAST or len(since) < _LEAST:
        return [Span("too near the edge of the window to compare the loss", "dim")]
    usual = statistics.median(before)
    spread = max(statistics.pstdev(before), 0.002 * abs(usual))
    now = statistics.median(column.mean for _, column in since[-_LEAST:])
    noticed = _first_rise(since, usual + _SPREADS * spread)
    numbers = Span(f": {words.decimal(usual)} before, {words.decimal(now)} now", "dim")
    if noticed is None:
        return [Span("the loss does not show it", "warn"), numbers]
    after = f"{noticed - onset:,} steps later" if noticed > onset else "at once"
    return [Span(f"the loss rose {after}"), numbers]


def _first_rise(since: Sequence[tuple[int, Column]], level: float) -> int | None:
    """The first step from which the loss stays above ``level`` for three columns."""
    for at in range(len(since) - _LEAST + 1):
        if all(column.mean > level for _, column in since[at : at + _LEAST]):
            return since[at][0]
    return None


def _validation(points: Sequence[tuple[int, float]]) -> str:
    return f"● validation {words.decimal(points[-1][1])} at {points[-1][0]:,}" if points else ""


def _significant(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
