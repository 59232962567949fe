"""One layer: its experts now on the left, the layer over time on the right."""

from typing import ClassVar

from microscope_tui.draw import words
from microscope_tui.draw.bars import bars_width, bias_bars, load_bars
from microscope_tui.draw.charts import Placed, layer_charts, plot_area
from microscope_tui.draw.cost import layer_cost
from microscope_tui.draw.heat import Order
from microscope_tui.draw.numbers import OF_LAYER, quoted
from microscope_tui.draw.spans import (
    Line,
    Span,
    dim,
    labelled,
    line_width,
    pad,
    role_of,
    spread,
    wrap,
)
from microscope_tui.draw.time_line import TimeScale, time_scale
from microscope_tui.kit import keys
from microscope_tui.kit.chart_screen import TABS, Charts, ChartScreen
from microscope_tui.kit.glossary import ALERTS, BIAS, CHARTS, HEADER, LAYERS, TIME
from microscope_tui.kit.keys import key
from microscope_tui.runlog import plural
from microscope_tui.screens.expert import text as expert_card
from microscope_tui.screens.expert.screen import ExpertScreen
from microscope_tui.watch import LayerView, RunView, RunWatch
from microscope_tui.watch.cost import cost_of
from microscope_tui.watch.view import findings_of

_TWO_COSTS_FROM_ROWS = 24
_EVIDENCE_SHARE = 4  # share of the screen's lines


_QUADRANTS = {
    "collapsed": "few experts get all tokens, at any entropy",
    "specialised": "experts evenly used, and each token has a clear choice: the goal",
    "uniform": "experts evenly used because the router hardly distinguishes tokens",
    "undecided": "between specialised and uniform, usual early in training",
}


class LayerScreen(ChartScreen):
    """Experts now on the left, the layer over time on the right."""

    CSS = f"""
    {ChartScreen.CSS}
    LayerScreen #charts {{ layout: horizontal; }}
    #layer-title, #evidence, #hidden {{ height: 1; }}
    #now, #past {{ width: auto; height: auto; margin-right: 2; }}
    .roomy #layer-title {{ margin-top: 1; }}
    """
    WORDS: ClassVar = {**LAYERS, **_QUADRANTS, **CHARTS, **BIAS, **ALERTS, **HEADER, **TIME}
    BINDINGS: ClassVar = [
        keys.BACK,
        keys.LAYERS[0],
        keys.OPEN_EXPERT,
        *keys.LAYERS[1:],
        *keys.EXPERTS,
        *TABS,
        key("chart.enlarge", "z", "enlarge", "enlarge the chart"),
        key("chart.smooth", "e", "smooth", "smooth the curves"),
        *keys.ALERTS,
        *keys.TIME,
        *keys.OUT,
        *keys.EVERYWHERE,
    ]
    PARTS = (
        *("header", "layer-title", "evidence"),
        (
            "charts",
            ("now", "chart-load", "chart-bias"),
            (
                *("past", *map("chart-{}".format, OF_LAYER)),
                *("chart-balance", "chart-entropy", "chart-max-load", "chart-drop"),
            ),
        ),
        *("hidden", "ribbon"),
    )

    IN_DETAIL = True
    expert_order = Order.ID
    _drawn: tuple[RunView, LayerView]

    def plot_area(self) -> tuple[int, int]:
        return plot_area(self.room.width - 1, 1 if self.enlarged else 2, self.first_stack())

    def first_stack(self) -> int:
        run, selected = self.session.run, self.session.selected
        if run is None or selected >= len(run.routers):
            return 0
        experts = run.routers[selected].num_experts
        return bars_width(experts, self.room.width - 1, self.session.glyphs)

    async def draw(self, view: RunView, columns: int, rows: int) -> None:
        if self.session.selected >= len(view.layers):
            return
        layer = view.layers[self.session.selected]
        self._drawn = view, layer
        left = [
            Span(f"  {layer.router.name}", "title"),
            dim(f"  {layer.index + 1} of {len(view.layers)} layers"),
            dim(f"   {words.router_size(layer)}"),
        ]
        if quadrant := words.quadrant(layer):
            left.append(Span(f"   {quadrant}", "value"))
        moment = self.session.unless_live(view)
        self.show("layer-title", [spread(left, [Span(moment, "accent")], columns)])
        watch, most = self.session.watch, max(1, rows // _EVIDENCE_SHARE - 2)
        assert watch is not None  # there is a view of it
        said = evidence(watch, view, layer.index, columns, most)
        cost = cost_of(watch, self.session.time.pin, self.session.preferences.cost, (layer.index,))
        if cost is not None:
            said += layer_cost(cost, layer.index, columns, 1 + (rows >= _TWO_COSTS_FROM_ROWS))
        self.show("evidence", said, height=len(said))
        here = (
            f for f, _ in view.findings if any(e.router_index == layer.index for e in f.episodes)
        )
        about = quoted(here)
        first = [name for name in OF_LAYER if f"router.{name}" in about]
        charts = {name: self.number(view, f"router.{name}", layer.index) for name in first}
        charts |= layer_charts(view, layer)
        now = ["load"]
        if layer.bias:
            now.append("bias")
        stacks = [now, list(charts)]
        time = time_scale(view, self.session.axis, layer.index)
        self.draw_charts(stacks, charts, time, self.rows_of_charts(rows, 3 + len(said)), view.step)

    def drawn(self, place: Placed, charts: Charts, time: TimeScale, step: int) -> list[Line]:
        if place.name in charts:
            return super().drawn(place, charts, time, step)
        view, layer = self._drawn
        is_bias = place.name == "bias"
        bars = bias_bars if is_bias else load_bars
        values = layer.load
        nothing = words.no_counts(view)
        if is_bias:
            values = layer.bias
            nothing = "no finite value"
        return bars(
            values or (),
            (place.width, place.height),
            self.session.glyphs,
            nothing,
            step=view.counts_step or 0,
            chosen=self.session.expert,
            focused=place.name == self.chart_in_focus,
        )

    async def action_open_expert(self) -> None:
        view, selected = self.session.glance(), self.session.selected
        if view is not None and selected < len(view.layers):
            if self.session.expert is None:
                self.session.expert = expert_card.first_expert(view, view.layers[selected])
            await self.app.push_screen(ExpertScreen(self.session))


def evidence(watch: RunWatch, view: RunView, layer: int, columns: int, most: int) -> list[Line]:
    """The findings of one layer, in at most ``most`` lines. It takes the lock of ``watch``."""
    lines: list[Line] = []
    width = max(20, columns - 12)
    with watch.lock:
        found = findings_of(watch, None if view.timeline.cursor is None else view.step, layer)
    for finding, advice in found:
        severity = Span(f"  {finding.severity.label.upper():<6}", role_of(finding))
        lines.append([severity, Span(advice.verdict)])
        lines += labelled("why", wrap(advice.why, width), 8)
        lines += labelled("next", wrap(advice.next, width), 8)
    lines = lines or [[dim("  no alerts in this layer")]]
    lines = [pad(line, columns) for line in lines]
    if len(lines) > most:
        left = plural(len(lines) - most, "more line")
        more = [Span(f"  {left}: ", "faint"), Span("3", "accent"), Span(" ")]
        last = pad(lines[most - 1], columns - line_width(more))
        lines = [*lines[: most - 1], [*last, *more]]
    return lines
