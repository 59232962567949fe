"""One layer under high power: its verdict, the load of every expert, and its curves over time."""

import math
from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Grid
from textual.strip import Strip

from microscope_tui.app import keys
from microscope_tui.app.renderables import palette
from microscope_tui.app.screens.run_screen import RunScreen
from microscope_tui.app.widgets.rows import Rows
from microscope_tui.diagnosis import thresholds
from microscope_tui.diagnosis.advice import Advice
from microscope_tui.diagnosis.episodes import Finding
from microscope_tui.report import frame, words
from microscope_tui.report.spans import ROLE_OF_SEVERITY, Line, Span, pad
from microscope_tui.report.wrap import wrap
from microscope_tui.watch.view import LayerView, RunView

_POINTS = 240


class LayerScreen(RunScreen):
    """Four charts of one layer; up and down go to its neighbours."""

    BINDINGS: ClassVar[list[BindingType]] = [*keys.LAYER]

    def compose(self) -> ComposeResult:
        glyphs = self.session.glyphs
        yield Rows(glyphs, id="header")
        yield Rows(glyphs, id="layer-title")
        yield Rows(glyphs, id="evidence")
        with Grid(id="charts"):
            yield Rows(glyphs, id="chart-load")
            yield Rows(glyphs, id="chart-balance")
            yield Rows(glyphs, id="chart-entropy")
            yield Rows(glyphs, id="chart-drop")
        yield Rows(glyphs, id="keys")

    async def redraw(self) -> None:
        selected = self.session.selected
        view = self.session.view(_POINTS, 8, range(selected, selected + 1))
        if view is None or selected >= len(view.layers):
            return
        layer, columns = view.layers[selected], self.size.width
        glyphs = self.session.glyphs
        self.query_one("#header", Rows).show([frame.header(view, columns, glyphs)])
        self.query_one("#layer-title", Rows).show([pad(self._title(view, layer), columns)])
        evidence = _evidence(view, layer, columns)
        rows = self.query_one("#evidence", Rows)
        rows.styles.height = len(evidence)
        rows.show(evidence)
        self.draw_last_line()
        self.call_after_refresh(self._draw_charts, view, layer)

    def _title(self, view: RunView, layer: LayerView) -> Line:
        router = layer.router
        moment = "" if self.session.time.following else f"   {self.moment(view)}"
        return [
            Span(f"  {router.name}", "title"),
            Span(f"  {layer.index + 1}/{len(view.layers)}", "dim"),
            Span(f"  {router.num_experts} experts, top-{router.top_k}", "dim"),
            Span("  balance ", "dim"),
            Span(words.index(layer.collapse_index) or "-"),
            Span("  entropy ", "dim"),
            Span(words.decimal(layer.entropy) or "-"),
            Span(f" of {words.decimal(layer.mean_entropy) or '-'}", "dim"),
            Span("  max load ", "dim"),
            Span(words.decimal(layer.max_load) or "-"),
            Span(moment, "accent"),
        ]

    def _draw_charts(self, view: RunView, layer: LayerView) -> None:
        from microscope_tui.app.renderables import charts  # plotext: only when a layer is opened

        glyphs = self.session.glyphs.value

        def draw(
            name: str,
            title: str,
            series: Sequence[charts.Curve],
            top: float | None = None,
            limits: Sequence[tuple[float, str]] = (),
        ) -> None:
            widget = self.query_one(name, Rows)
            if widget.size.height < 4 or widget.size.width < 16:
                widget.show_strips([])
                return
            size = (widget.size.width, widget.size.height)
            widget.show_strips(
                charts.curves(title, series, view.step, size, top=top, limits=limits, glyphs=glyphs)
            )

        load = self.query_one("#chart-load", Rows)
        strips: list[Strip] = []
        if load.size.height >= 4 and load.size.width >= 16:
            title = f"load per expert, step {view.counts_step or 0:,}"
            size = (load.size.width, load.size.height)
            strips = charts.bars(title, layer.load or (), size, glyphs=glyphs)
        load.show_strips(strips)
        limits = thresholds.DEFAULTS.COLLAPSE
        draw(
            "#chart-balance",
            "balance c, 1 is even",
            [charts.Curve(layer.balance_history, palette.ACCENT, "low")],
            1.0,
            [(limits.warn, palette.WARN), (limits.critical, palette.CRITICAL)],
        )
        draw(
            "#chart-entropy",
            f"entropy: token bright, mean dim{f'; {layer.quadrant}' if layer.quadrant else ''}",
            [
                charts.Curve(layer.mean_entropy_history, palette.DIM),
                charts.Curve(layer.entropy_history, palette.ACCENT),
            ],
            math.log(max(2, layer.router.num_experts)),
        )
        if layer.drop_rate is not None:
            drops = [charts.Curve(layer.drop_history, palette.WARN, "high")]
            draw("#chart-drop", "dropped share of assignments", drops)
        else:
            peak = [charts.Curve(layer.max_load_history, palette.WARN, "high")]
            draw("#chart-drop", "max load, 1 is fair (dropless)", peak)


def _evidence(view: RunView, layer: LayerView, columns: int) -> list[Line]:
    """Verdict, why and next of every finding of this layer, wrapped, the worst first."""
    lines: list[Line] = []
    for finding, advice in view.findings:
        if any(episode.router_index == layer.index for episode in finding.episodes):
            lines += _finding(finding, advice, columns)
    return lines[:9] or [pad([Span("  no alerts in this layer", "dim")], columns)]


def _finding(finding: Finding, advice: Advice, columns: int) -> list[Line]:
    role = ROLE_OF_SEVERITY[finding.severity] if finding.active else "dim"
    width = max(20, columns - 12)
    lines: list[Line] = [
        pad([Span(f"  {finding.severity.label.upper():<6}", role), Span(advice.verdict)], columns)
    ]
    for word, text in (("why", advice.why), ("next", advice.next)):
        for at, part in enumerate(wrap(text, width)):
            head = word if at == 0 else ""
            lines.append(pad([Span(f"  {head:<6}", "dim"), Span(part)], columns))
    return lines
