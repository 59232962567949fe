"""Screens of charts over time: their base, the layer screen, and the course of the run."""

from collections.abc import Container, Mapping, Sequence
from typing import ClassVar

from textual.binding import BindingType

from microscope_tui.app import keys
from microscope_tui.app.charts import figure
from microscope_tui.app.keys import key, screen_class
from microscope_tui.app.rows import Rows
from microscope_tui.app.screens.run_screen import RunScreen
from microscope_tui.lines import (
    SMOOTHINGS,
    Chart,
    Line,
    Placed,
    Span,
    TimeScale,
    arranged,
    bias_bars,
    course_charts,
    evidence,
    layer_charts,
    load_bars,
    loss_answer,
    most_remarkable,
    pad,
    plot_area,
    shortened,
    spread,
    time_line,
    time_scale,
    words,
)
from microscope_tui.watch import LayerView, RouterHealth, RunView, router_health

RIBBON_FROM_ROWS = 16
ROOMY_FROM_ROWS = 30
MOST_POINTS = 240
_EVIDENCE_SHARE = 4  # share of the screen's lines
_TAB = ("chart.next", "tab", "focus_chart(1)", "next chart", "chart")
_BACK_TAB = ("chart.previous", "shift+tab", "focus_chart(-1)", "previous chart")


class ChartScreen(RunScreen):
    """Keeps the focus by chart name: the set of charts may change with the run."""

    CSS = """
    #charts { height: 1fr; overflow: hidden; }
    .single #charts { layout: vertical; }
    ChartScreen.roomy #ribbon, .roomy #charts { margin-top: 1; }
    """
    focus_name = ""
    has_focus_key = True
    enlarged = False
    _stacks: Sequence[Sequence[str]] = ()

    def points(self) -> int:
        return min(MOST_POINTS, 2 * self.room.width)

    @property
    def chart_names(self) -> Sequence[str]:
        """The current charts, in the order of the tab key."""
        return [name for stack in self._stacks for name in stack]

    @property
    def chart_in_focus(self) -> str:
        """The focused chart, or the first one."""
        names = self.chart_names
        return self.focus_name if self.focus_name in names else next(iter(names), "")

    async def action_focus_chart(self, by: int) -> None:
        """Focus another chart."""
        names = self.chart_names
        if names:
            at = names.index(self.chart_in_focus) + by
            self.focus_name = names[at % len(names)]
            await self.redraw()

    async def action_enlarge(self) -> None:
        """Enlarge the focused chart to the whole screen, or show all again."""
        self.enlarged = not self.enlarged
        await self.redraw()

    async def action_smooth(self) -> None:
        """Cycle through the weights of the exponential moving average."""
        session = self.session
        at = SMOOTHINGS.index(session.smoothing) + 1 if session.smoothing in SMOOTHINGS else 0
        session.smoothing = weight = SMOOTHINGS[at % len(SMOOTHINGS)]
        said = f"exponential moving average, {words.index(weight)}" if weight else "off"
        self.tell(f"smoothing: {said}", "accent")
        await self.redraw()

    def plot_area(self) -> tuple[int, int]:
        """Start and width of the time axis of the charts."""
        return plot_area(self.room.width - 1)

    def ribbon_columns(self) -> int:
        return self.plot_area()[1]

    def ribbon(self, view: RunView) -> Line:
        session = self.session
        return time_line.aligned_ribbon(view, self.room.width, self.plot_area(), session.axis)

    def show_part(self, part: str, lines: Sequence[Line]) -> None:
        """A block of lines that is as high as its content."""
        self.query_one(f"#{part}").set_class(not lines, "gone")
        self.show(part, lines, height=max(1, len(lines)))

    def rows_of_charts(self, rows: int, others: int, gaps: int = 3) -> int:
        """Classes by the height of the screen; lines that the charts have beside other parts."""
        roomy, ribbon = rows >= ROOMY_FROM_ROWS, rows >= RIBBON_FROM_ROWS
        self.set_class(roomy, "roomy")
        self.query_one("#ribbon").set_class(not ribbon, "gone")
        return rows - others - ribbon - gaps * roomy

    def draw_charts(
        self,
        stacks: Sequence[Sequence[str]],
        charts: Mapping[str, Chart],
        time: TimeScale,
        room: int,
        step: int,
    ) -> None:
        """Lay out and show the charts; those without room are hidden, which is said."""
        self._stacks, columns = stacks, self.room.width
        focus = self.chart_in_focus
        layout = arranged(stacks, focus, (columns - 1, room), enlarged=self.enlarged)
        hides = "hidden" in self.PARTS and bool(layout.hidden) and not self.enlarged
        if hides:
            layout = arranged(stacks, focus, (columns - 1, room - 1))
        if "hidden" in self.PARTS:
            self.show_part("hidden", [_hidden_line(layout.hidden, columns)] if hides else [])
        places = {place.name: place for stack in layout.stacks for place in stack}
        self.set_class(len(layout.stacks) < 2, "single")
        for rows in self.query("#charts Rows").results(Rows):
            name = (rows.id or "").removeprefix("chart-")
            rows.display = name in places
            if name in places:
                place = places[name]
                rows.styles.height, rows.styles.width = place.height, place.width
                rows.show(
                    self._figure(charts[name], time, place, step)
                    if name in charts
                    else self.draw_bars(place)
                )

    def _figure(self, chart: Chart, time: TimeScale, place: Placed, step: int) -> list[Line]:
        return figure(
            chart,
            time,
            (place.width, place.height),
            self.session.glyphs,
            step=step,
            smoothing=self.session.smoothing,
            focused=self.has_focus_key and place.name == self.chart_in_focus,
            ticks=place.last,
        )

    def draw_bars(self, place: Placed) -> list[Line]:
        """What is no chart over time."""
        raise KeyError(place.name)


class LayerScreen(ChartScreen):
    """Experts now on the left, the layer over time on the right; up and down change the layer."""

    CSS = f"""
    {ChartScreen.CSS}
    LayerScreen #charts {{ layout: horizontal; }}
    #layer-title, #evidence, #hidden {{ height: 1; }}
    #now, #past {{ width: auto; height: auto; margin-right: 2; }}
    .roomy #layer-title {{ margin-top: 1; }}
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        keys.BACK,
        keys.LAYERS[0],
        keys.OPEN_EXPERT,
        *keys.LAYERS[1:],
        *keys.EXPERTS,
        key(*_TAB),
        key(*_BACK_TAB),
        key("chart.enlarge", "z", "enlarge", "enlarge the chart"),
        key("chart.smooth", "e", "smooth", "smooth the curves"),
        *keys.ALERTS,
        *keys.TIME,
        *keys.OUT,
        *keys.EVERYWHERE,
    ]
    PARTS = (
        "header",
        "layer-title",
        "evidence",
        (
            "charts",
            ("now", "chart-load", "chart-bias"),
            ("past", "chart-balance", "chart-entropy", "chart-max-load", "chart-drop"),
        ),
        "hidden",
        "ribbon",
        "keys",
    )

    _drawn: tuple[RunView, LayerView]

    def plot_area(self) -> tuple[int, int]:
        return plot_area(self.room.width - 1, 1 if self.enlarged else 2)

    def layers_in_detail(self) -> Container[int]:
        return (self.session.selected,)

    async def draw(self, view: RunView, columns: int, rows: int) -> None:
        if self.session.selected >= len(view.layers):
            return
        layer = view.layers[self.session.selected]
        self._drawn = view, layer
        self.show("layer-title", [self._title(view, layer, columns)])
        said = evidence(view, layer, columns, max(1, rows // _EVIDENCE_SHARE - 2))
        self.show_part("evidence", said)
        charts = layer_charts(view, layer)
        stacks = [["load", "bias"] if layer.bias else ["load"], list(charts)]
        time = time_scale(view, self.session.axis, layer.index)
        self.draw_charts(stacks, charts, time, self.rows_of_charts(rows, 3 + len(said)), view.step)

    def _title(self, view: RunView, layer: LayerView, columns: int) -> Line:
        left = [
            Span(f"  {layer.router.name}", "title"),
            Span(f"  {layer.index + 1} of {len(view.layers)} layers", "dim"),
            Span(f"   {words.router_size(layer)}", "dim"),
        ]
        if layer.quadrant:
            left.append(Span(f"   {layer.quadrant}", "value"))
        moment = "" if self.session.time.following else f"{self.moment(view)} "
        return spread(left, [Span(moment, "accent")], columns)

    def draw_bars(self, place: Placed) -> list[Line]:
        (view, layer), session, size = self._drawn, self.session, (place.width, place.height)
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
        view, selected = self.session.glance(), self.session.selected
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
        if layer is not None:
            if self.session.expert is None:
                self.session.expert = most_remarkable(layer.load or ())
            await self.app.push_screen(screen_class("expert")(self.session))


class CourseScreen(ChartScreen):
    """Loss, routers, gradients and learning rate on one time axis: did the loss react?"""

    CSS = f"""
    {ChartScreen.CSS}
    #answer, #hidden {{ height: 1; }}
    .roomy #answer {{ margin-top: 1; }}
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        keys.BACK,
        key(*_TAB),
        key(*_BACK_TAB),
        key("chart.enlarge", "z", "enlarge", "enlarge the chart", "enlarge"),
        key("chart.smooth", "e", "smooth", "smooth the curves", "smooth"),
        *keys.ALERTS,
        *keys.TIME,
        *keys.OUT,
        *keys.EVERYWHERE,
    ]
    _NAMES = ("loss", "balance", "max-load", "gradient-norm", "learning-rate")
    PARTS = (
        "header",
        "answer",
        ("charts", *(f"chart-{name}" for name in _NAMES)),
        "hidden",
        "ribbon",
        "keys",
    )

    _health: tuple[object, RouterHealth] = (None, RouterHealth((), ()))

    async def draw(self, view: RunView, columns: int, rows: int) -> None:
        session = self.session
        moment = "" if session.time.following else f"{self.moment(view)} "
        answer = loss_answer(view, columns - len(moment), session.selected)
        self.show("answer", [[*answer, Span(moment, "accent")]])
        charts = course_charts(view, self._health_of(view))
        time = time_scale(view, session.axis)
        self.draw_charts([list(charts)], charts, time, self.rows_of_charts(rows, 3), view.step)

    def _health_of(self, view: RunView) -> RouterHealth:
        """Recomputed only when the history changes: it walks over all layers."""
        watch, points = self.session.watch, self.points()
        assert watch is not None  # there is a view of it
        key = (watch, watch.generation, watch.version, view.window, points)
        if self._health[0] != key:
            self._health = (key, router_health(watch, points, view.window))
        return self._health[1]


def _hidden_line(hidden: Sequence[str], width: int) -> Line:
    """Names of the hidden charts, and the key that shows them."""
    names = ", ".join(name.replace("-", " ") for name in hidden)
    text = shortened(f" not shown: {names}", max(0, width - 18))
    return pad([Span(text, "faint"), Span("   tab", "accent"), Span(" shows them", "faint")], width)
