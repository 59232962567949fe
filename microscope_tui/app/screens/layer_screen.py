"""One layer: its verdict, the load of every expert now, its curves over time."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical

from microscope_tui.app import keys
from microscope_tui.app.actions.chart_actions import (
    MOST_POINTS,
    RIBBON_FROM_ROWS,
    ROOMY_FROM_ROWS,
    ChartActions,
    hidden_line,
)
from microscope_tui.app.screens.expert_screen import ExpertScreen
from microscope_tui.app.widgets.rows import Rows
from microscope_tui.lines import (
    Chart,
    Line,
    Placed,
    Span,
    arranged,
    bias_bars,
    evidence,
    layer_charts,
    load_bars,
    most_remarkable,
    pad,
    plot_area,
    spread,
    time_scale,
    words,
)
from microscope_tui.watch import LayerView, RunView

_EVIDENCE_SHARE = 4  # share of the screen's lines


class LayerScreen(ChartActions):
    """Experts now on the left, the layer over time on the right; up and down change the layer."""

    CSS = f"""
    {ChartActions.CSS}
    #layer-title, #evidence, #hidden {{ height: 1; }}
    .stack {{ width: auto; height: auto; margin-right: 2; }}
    .roomy #layer-title {{ margin-top: 1; }}
    """
    BINDINGS: ClassVar[list[BindingType]] = [*keys.LAYER]

    _names: Sequence[Sequence[str]] = ()

    def compose(self) -> ComposeResult:
        glyphs = self.session.glyphs
        yield Rows(glyphs, id="header")
        yield Rows(glyphs, id="layer-title")
        yield Rows(glyphs, id="evidence")
        with Horizontal(id="charts"):
            with Vertical(classes="stack"):
                yield Rows(glyphs, id="chart-load")
                yield Rows(glyphs, id="chart-bias")
            with Vertical(classes="stack"):
                yield Rows(glyphs, id="chart-balance")
                yield Rows(glyphs, id="chart-entropy")
                yield Rows(glyphs, id="chart-max-load")
                yield Rows(glyphs, id="chart-drop")
        yield Rows(glyphs, id="hidden")
        yield Rows(glyphs, id="ribbon")
        yield Rows(glyphs, id="keys")

    def chart_names(self) -> Sequence[str]:
        return [name for stack in self._names for name in stack]

    def plot_area(self) -> tuple[int, int]:
        return plot_area(self.room.width - 1, 1 if self.enlarged else 2)

    async def redraw(self) -> None:
        session, (columns, rows) = self.session, self.room
        selected = session.selected
        points = min(MOST_POINTS, 2 * columns)
        view = session.view(points, self.ribbon_columns(), range(selected, selected + 1))
        if view is None or selected >= len(view.layers):
            return
        if self.draw_small(view):
            return
        layer = view.layers[selected]
        self.query_one("#layer-title", Rows).show([self._title(view, layer, columns)])
        said = evidence(view, layer, columns, max(1, rows // _EVIDENCE_SHARE - 2))
        self.show_part("#evidence", said)
        self.query_one("#ribbon").set_class(rows < RIBBON_FROM_ROWS, "gone")
        self._draw_charts(view, layer, len(said))
        self.draw_frame(view)

    def _title(self, view: RunView, layer: LayerView, columns: int) -> Line:
        router = layer.router
        left = [
            Span(f"  {router.name}", "title"),
            Span(f"  {layer.index + 1} of {len(view.layers)} layers", "dim"),
            Span(f"   {words.router_size(layer)}", "dim"),
        ]
        if layer.quadrant:
            left.append(Span(f"   {layer.quadrant}", "value"))
        moment = "" if self.session.time.following else f"{self.moment(view)} "
        return pad(spread(left, [Span(moment, "accent")], columns), columns)

    def _draw_charts(self, view: RunView, layer: LayerView, said: int) -> None:
        columns, rows = self.room
        charts = layer_charts(view, layer)
        self._names = [["load", "bias"] if layer.bias else ["load"], list(charts)]
        roomy = rows >= ROOMY_FROM_ROWS
        self.set_class(roomy, "roomy")
        room = rows - 3 - said - (rows >= RIBBON_FROM_ROWS) - 3 * roomy
        focus = self.chart_in_focus
        layout = arranged(self._names, focus, (columns - 1, room), enlarged=self.enlarged)
        if layout.hidden and not self.enlarged:
            layout = arranged(self._names, focus, (columns - 1, room - 1))
        hidden = [] if self.enlarged or not layout.hidden else [hidden_line(layout.hidden, columns)]
        self.show_part("#hidden", hidden)
        self.show_stacks(
            layout,
            {
                place.name: self._drawn(place, view, layer, charts)
                for stack in layout.stacks
                for place in stack
            },
        )

    def _drawn(
        self, place: Placed, view: RunView, layer: LayerView, charts: Mapping[str, Chart]
    ) -> list[Line]:
        session, size = self.session, (place.width, place.height)
        if place.name in charts:
            time = time_scale(view, session.axis, layer.index)
            return self.draw_figure(charts[place.name], time, place, view.step)
        step, chosen = view.counts_step or 0, session.expert
        focused = place.name == self.chart_in_focus
        if place.name == "bias":
            bias = layer.bias or ()
            return bias_bars(bias, size, session.glyphs, step=step, chosen=chosen, focused=focused)
        return load_bars(
            layer.load,
            size,
            session.glyphs,
            step=step,
            chosen=chosen,
            focused=focused,
            nothing=words.no_counts(view),
        )

    def _layer(self) -> LayerView | None:
        view, selected = self.session.view(1, 1, range(0)), self.session.selected
        return view.layers[selected] if view is not None and selected < len(view.layers) else None

    async def action_expert(self, by: int) -> None:
        """Choose another expert."""
        layer = self._layer()
        if layer is None or not layer.load:
            self.tell("no counts in this layer at this step")
            return
        session, last = self.session, len(layer.load) - 1
        session.expert = 0 if session.expert is None else max(0, min(last, session.expert + by))
        await self.redraw()

    async def action_open_expert(self) -> None:
        """Open the card of the chosen expert, or of the one farthest from fair."""
        layer = self._layer()
        if layer is None:
            return
        if self.session.expert is None:
            self.session.expert = most_remarkable(layer.load or ())
        await self.app.push_screen(ExpertScreen(self.session))
