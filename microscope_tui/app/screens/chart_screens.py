"""Screens of charts over time: what all of them share, one layer, one expert."""

import asyncio
import threading
from collections.abc import Container, Mapping, Sequence
from typing import ClassVar

from microscope_tui.app import keys
from microscope_tui.app.charts import figure
from microscope_tui.app.keys import key, pair
from microscope_tui.app.rows import Rows
from microscope_tui.app.screens.base import AIRY_FROM_ROWS
from microscope_tui.app.screens.run_screen import RunScreen
from microscope_tui.lines import (
    OF_LAYER,
    SMOOTHINGS,
    Chart,
    Line,
    LoadSeries,
    Order,
    Placed,
    Span,
    TimeScale,
    after,
    arranged,
    bars_width,
    bias_bars,
    dim,
    evidence,
    expert_card,
    layer_charts,
    layer_cost,
    load_bars,
    number_chart,
    pad,
    plot_area,
    quoted,
    shortened,
    spread,
    time_line,
    time_scale,
    words,
)
from microscope_tui.placement import cost_of
from microscope_tui.watch import (
    LayerView,
    Reading,
    RunView,
    RunWatch,
    course_of,
    kept_numbers,
    samples,
)

_RIBBON_FROM_ROWS = 16
_TWO_COSTS_FROM_ROWS = 24
MOST_POINTS = 240
_NOTHING = LoadSeries(())
_LEAST_SAMPLES, _MOST_SAMPLES = 48, 160
_COARSE = 32  # parts of a window: one whose ends stay in their parts keeps its samples
_MOST_READINGS = 4
_EVIDENCE_SHARE = 4  # share of the screen's lines
TABS = (
    key("chart.next", "tab", "focus_chart(1)", "next chart", "chart"),
    key("chart.previous", "shift+tab", "focus_chart(-1)", "previous chart"),
)
Charts = Mapping[str, Chart]


class PlotScreen(RunScreen):
    """The ribbon is below plots over time, and has their columns."""

    def columns(self) -> int:
        """Cells of the charts."""
        return self.room.width - 1

    def plot_area(self) -> tuple[int, int]:
        """Cells left of the time axis, and cells of the axis."""
        return plot_area(self.columns())

    def ribbon_columns(self) -> int:
        return self.plot_area()[1]

    def ribbon(self, view: RunView) -> Line:
        plot, axis = self.plot_area(), self.session.axis
        return time_line.aligned_ribbon(view, self.room.width, plot, axis)


class ChartScreen(PlotScreen):
    """Keeps the focus by name: the set of charts may change with the run."""

    CSS = """
    #charts { height: 1fr; overflow: hidden; }
    .single #charts { layout: vertical; }
    ChartScreen.roomy #ribbon, .roomy #charts { margin-top: 1; }
    """
    focus_name = ""
    enlarged = False
    _stop = threading.Event()
    """Ends the reading of a number."""
    _reads: Reading | None = None
    """The numbers that a worker reads from the log now."""
    _cannot_read = ""
    _stacks: Sequence[Sequence[str]] = ()
    """Names of the charts, from left to right, and from the top."""

    def points(self) -> int:
        return min(MOST_POINTS, 2 * self.room.width)

    @property
    def chart_names(self) -> Sequence[str]:
        """In the order of the tab key."""
        return [name for stack in self._stacks for name in stack]

    @property
    def chart_in_focus(self) -> str:
        """Its name; the first one if the chosen one is missing now, empty without charts."""
        names = self.chart_names
        return self.focus_name if self.focus_name in names else next(iter(names), "")

    async def action_focus_chart(self, by: int) -> None:
        names = self.chart_names
        if names:
            at = names.index(self.chart_in_focus) + by
            self.focus_name = names[at % len(names)]
            await self.redraw()

    async def action_enlarge(self) -> None:
        self.enlarged = not self.enlarged
        await self.redraw()

    async def action_smooth(self) -> None:
        self.session.smoothing = weight = after(self.session.smoothing, SMOOTHINGS)
        said = f"exponential moving average, {words.index(weight)}" if weight else "off"
        self.show_message(f"smoothing: {said}", "accent")
        await self.redraw()

    def first_stack(self) -> int:
        """Cells of the first of two stacks; 0 for half of them."""
        return 0

    def rows_of_charts(self, rows: int, others: int, gaps: int = 3) -> int:
        """Sets the classes of the height; lines that other parts leave to the charts."""
        roomy, ribbon = rows >= AIRY_FROM_ROWS, rows >= _RIBBON_FROM_ROWS
        self.set_class(roomy, "roomy")
        self.query_one("#ribbon").set_class(not ribbon, "gone")
        return rows - others - ribbon - gaps * roomy

    def draw_charts(
        self, stacks: Sequence[Sequence[str]], charts: Charts, time: TimeScale, room: int, step: int
    ) -> None:
        """Arrange the charts in ``room`` lines and draw those that fit; the others are named.

        Args:
            stacks: names of the charts, from left to right, and from the top.
            charts: by name.
            time: their x axis.
            room: lines of all charts.
            step: the shown one, to which the values in the titles belong.
        """
        self._stacks, columns = stacks, self.room.width
        focus = self.chart_in_focus
        first = self.first_stack()
        size = self.columns(), room
        layout = arranged(stacks, focus, size, enlarged=self.enlarged, first=first)
        if "hidden" in self.PARTS:
            lines: list[Line] = []
            if layout.hidden and not self.enlarged:
                layout = arranged(stacks, focus, (size[0], room - 1), first=first)
                names = ", ".join(layout.hidden).replace("-", " ").replace("_", " ")
                text = shortened(f" not shown: {names}", max(0, columns - 18))
                said = Span(text, "faint"), Span("   tab", "accent"), Span(" shows them", "faint")
                lines = [pad(said, columns)]
            self.show("hidden", lines, height=len(lines))
        places = {place.name: place for stack in layout.stacks for place in stack}
        self.set_class(len(layout.stacks) < 2, "single")
        for rows in self.query("#charts Rows").results(Rows):
            name = (rows.id or "").removeprefix("chart-")
            rows.display = name in places
            if name in places:
                place = places[name]
                rows.styles.height, rows.styles.width = place.height, place.width
                rows.show(self.drawn(place, charts, time, step))

    # Numbers of the log

    def state_now(self) -> tuple[object, ...]:
        reads = self._reads
        return *super().state_now(), round(reads.progress, 2) if reads is not None else None

    def number(self, view: RunView, name: str, router: int | None = None) -> Chart:
        """A number over the steps of the view, of one router or of the run; as far as it was
        read.
        """
        watch, entry = self.session.watch, self.session.shown_entry
        assert watch is not None  # there is a view of it
        value = entry.numbers().get(name) if entry is not None else None
        if router is None and name in kept_numbers(watch):
            return number_chart(name, course_of(watch, name, self.points(), view.window), value)
        names = [name] if router is None else [f"router.{one}" for one in OF_LAYER]
        reading = self._reading(watch, names, each=router is not None)
        said = self.session.time.why_no_past() or self._cannot_read
        if not said and not reading.ended:
            said = f"reading the log: {reading.progress:.0%}"
        curve = course_of(reading, name, self.points(), view.window, router or 0)
        return number_chart(name, curve, value, router, said)

    def _reading(self, watch: RunWatch, names: Sequence[str], *, each: bool) -> Reading:
        """A worker takes it on to the end of the log."""
        session = self.session
        wanted = (watch.generation, each, *names)
        reading = session.readings.get(wanted)
        if reading is None:
            if len(session.readings) == _MOST_READINGS:
                session.readings.clear()
            reading = session.readings[wanted] = Reading(watch, names, each=each)
        stuck = self._cannot_read or session.time.why_no_past()
        if self._reads is None and reading.progress < 1.0 and not stuck:
            self._reads, self._stop = reading, threading.Event()
            self.run_worker(self._read_number(reading, self._stop), group="numbers")
        return reading

    async def _read_number(self, reading: Reading, stop: threading.Event) -> None:
        is_new = not reading.ended
        try:
            await asyncio.to_thread(reading.read_on, stop.is_set)
        except OSError as error:
            self._cannot_read = f"the log cannot be read: {error.strerror or error}"
        finally:
            stop.set()  # also after cancellation
            self._reads = None
        if is_new:  # the timer draws what is new later
            await self.redraw_if_current()

    def drawn(self, place: Placed, charts: Charts, time: TimeScale, step: int) -> list[Line]:
        """The lines of one chart in its place."""
        return figure(
            charts[place.name],
            time,
            (place.width, place.height),
            self.session.glyphs,
            step=step,
            smoothing=self.session.smoothing,
            focused=place.name == self.chart_in_focus,
            ticks=place.last,
        )


class LayerScreen(ChartScreen):
    """Experts now on the left, the layer over time on the right."""

    CSS = f"""
    {ChartScreen.CSS}
    LayerScreen #charts {{ layout: horizontal; }}
    #layer-title, #evidence, #hidden {{ height: 1; }}
    #now, #past {{ width: auto; height: auto; margin-right: 2; }}
    .roomy #layer-title {{ margin-top: 1; }}
    """
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

    def layers_in_detail(self) -> Container[int]:
        return (self.session.selected,)

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
        moment = "" if self.session.time.following else f"{self.moment(view)} "
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
        stacks = [["load", "bias"] if layer.bias else ["load"], list(charts)]
        time = time_scale(view, self.session.axis, layer.index)
        self.draw_charts(stacks, charts, time, self.rows_of_charts(rows, 3 + len(said)), view.step)

    def drawn(self, place: Placed, charts: Charts, time: TimeScale, step: int) -> list[Line]:
        if place.name in charts:
            return super().drawn(place, charts, time, step)
        view, layer = self._drawn
        is_bias = place.name == "bias"
        bars = bias_bars if is_bias else load_bars
        return bars(
            (layer.bias if is_bias else layer.load) or (),
            (place.width, place.height),
            self.session.glyphs,
            "no finite value" if is_bias else words.no_counts(view),
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


class ExpertScreen(ChartScreen):
    """A worker thread reads the history from the log; the previous one stays until then."""

    CSS = f"""
    {ChartScreen.CSS}
    #layer-title, #more {{ height: 1; }}
    #facts {{ height: 2; }}
    .roomy #layer-title, .roomy #more {{ margin-top: 1; }}
    """
    BINDINGS: ClassVar = [
        keys.BACK,
        *pair(
            "expert",
            key("expert.previous", "left,h,up,k", "expert(-1)", "previous expert"),
            key("expert.next", "right,l,down,j", "expert(1)", "next expert"),
        ),
        *keys.TIME,
        *keys.OUT,
        *keys.EVERYWHERE,
    ]
    PARTS = (
        *("header", "layer-title", "facts"),
        ("charts", "chart-load", "chart-bias", "chart-place"),
        *("more", "ribbon"),
    )

    chart_in_focus = ""  # no key moves it
    _series = _NOTHING
    _of: tuple[object, ...] = ()
    """What the series belongs to: the router, its log, the window."""
    _asked: tuple[object, ...] = ()
    _problem = ""

    def points(self) -> int:
        return MOST_POINTS

    async def draw(self, view: RunView, columns: int, rows: int) -> None:
        session, selected = self.session, self.session.selected
        if selected >= len(view.layers):
            return
        layer = view.layers[selected]
        chosen, experts = session.expert, layer.router.num_experts
        if chosen is None:
            chosen = expert_card.first_expert(view, layer)
        expert = session.expert = max(0, min(experts - 1, chosen))
        self._ask_for_samples(view, columns)
        known = self._known()
        moment = "" if session.time.following else self.moment(view)
        self.show("layer-title", [expert_card.title(view, layer, expert, moment, columns)])
        self.show("facts", expert_card.facts(view, layer, expert, known, columns))
        self.show("more", [expert_card.findings_line(view, layer, expert, columns)])
        why = "reading the log …" if self._asked else "no counts in this window"
        charts = expert_card.expert_charts(layer, expert, known, self._problem or why)
        room = max(4, self.rows_of_charts(rows, 6, gaps=4))
        time = time_scale(view, session.axis, layer.index)
        self.draw_charts([list(charts)], charts, time, room, view.counts_step or view.step)

    def _known(self) -> LoadSeries:
        return self._series if self._of[:3] == self._router() else _NOTHING

    def _router(self) -> tuple[object, ...]:
        watch = self.session.watch
        return watch, watch.generation if watch is not None else 0, self.session.selected

    def _ask_for_samples(self, view: RunView, columns: int) -> None:
        watch, problem = self.session.watch, self.session.time.why_no_past()
        self._problem = f"history cannot be read: {problem}" if problem else self._problem
        if watch is None or problem:
            return
        count = max(_LEAST_SAMPLES, min(_MOST_SAMPLES, columns))
        first, last = view.window
        bits = max(1, (last - first) // _COARSE).bit_length() - 1
        wanted = (*self._router(), watch.complete, first >> bits, last >> bits, bits, count)
        if wanted not in (self._of, self._asked):
            self._asked = wanted
            self.run_worker(self._read(wanted, watch, view, count), group="samples", exclusive=True)

    async def _read(
        self, wanted: tuple[object, ...], watch: RunWatch, view: RunView, count: int
    ) -> None:
        stop, router = threading.Event(), self.session.selected
        problem = ""
        found = _NOTHING

        def read() -> LoadSeries:
            return LoadSeries(samples(watch, router, count, view.window, cancelled=stop.is_set))

        try:
            found = await asyncio.to_thread(read)
        except OSError as error:
            problem = f"history cannot be read: {error.strerror or error}"
        finally:
            stop.set()  # also after cancellation: another worker reads the current samples
        if self._asked == wanted:
            self._series, self._of, self._asked, self._problem = found, wanted, (), problem
            await self.redraw_if_current()

    async def action_expert(self, by: int) -> None:
        if self.session.expert is not None:
            self.session.expert += by
        await self.redraw()
