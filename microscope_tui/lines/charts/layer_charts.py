"""The charts of one layer over time: balance, entropy, highest load, dropped assignments."""

import math
from collections.abc import Mapping

from microscope_tui.diagnosis import DEFAULTS
from microscope_tui.lines import missing, words
from microscope_tui.lines.charts.chart import Chart, Curve
from microscope_tui.watch import LayerView, RunView


def layer_charts(view: RunView, layer: LayerView) -> Mapping[str, Chart]:
    """By short names, most useful first; no drop chart in a dropless run."""
    limits, steps = DEFAULTS.COLLAPSE, view.axis
    most = math.log(max(2, layer.router.num_experts))
    charts = {
        "balance": Chart(
            "balance c",
            [Curve(steps, layer.balance_history, edge="low")],
            now=layer.collapse_index,
            note=words.without(layer.without) or "1 is even",
            top=1.0,
            limits=[(limits.warn, "warn"), (limits.critical, "crit")],
            spell=words.index,
            nothing=missing.no_balance(layer)[1],
        ),
        "entropy": Chart(
            "entropy",
            [
                Curve(steps, layer.mean_entropy_history, role="dim"),
                Curve(steps, layer.entropy_history),
            ],
            now=layer.entropy,
            note=f"mean {words.decimal(layer.mean_entropy)}"
            if layer.mean_entropy is not None
            else "",
            top=most,
            nothing=missing.NO_ENTROPY,
        ),
        "max-load": Chart(
            "max load",
            [Curve(steps, layer.max_load_history, edge="high")],
            now=layer.max_load,
            note="1 is fair",
            limits=[(1.0, "dim")],
        ),
    }
    if layer.drop_rate is not None or any(c.low == c.low for c in layer.drop_history):
        dropped = [Curve(steps, layer.drop_history, edge="high")]
        charts["drop"] = Chart(
            "dropped", dropped, layer.drop_rate, "share of assignments", spell=words.percent
        )
    return charts
