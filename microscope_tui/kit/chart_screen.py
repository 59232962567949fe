"""Screens of charts over time: what all of them share, one layer, one expert."""

import asyncio
import threading
from collections.abc import Mapping, Sequence

from microscope_tui.draw import words
from microscope_tui.draw.charts import SMOOTHINGS, Chart, Placed, arranged, plot_area
from microscope_tui.draw.heat import after
from microscope_tui.draw.numbers import OF_LAYER, number_chart
from microscope_tui.draw.spans import Line, Span, pad, shortened
from microscope_tui.draw.time_line import TimeScale
from microscope_tui.kit.base import AIRY_FROM_ROWS
from microscope_tui.kit.figure import figure
from microscope_tui.kit.keys import key
from microscope_tui.kit.rows import Rows
from microscope_tui.kit.run_screen import RunScreen
from microscope_tui.watch import Reading, RunView, RunWatch, course_of, kept_numbers

_RIBBON_FROM_ROWS = 16
MOST_POINTS = 240
_MOST_READINGS = 4
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
        return plot_area(self.columns())


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
