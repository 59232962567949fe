"""Keys of charts: move the focus, enlarge, smooth."""

from collections.abc import Mapping, Sequence

from microscope_tui.app.actions.run_screen import RunScreen
from microscope_tui.app.renderables.charts import figure
from microscope_tui.app.widgets.rows import Rows
from microscope_tui.lines import (
    SMOOTHINGS,
    Chart,
    ChartLayout,
    Line,
    Placed,
    Span,
    TimeScale,
    pad,
    plot_area,
    shortened,
    time_line,
    words,
)
from microscope_tui.watch import RunView

RIBBON_FROM_ROWS = 16
ROOMY_FROM_ROWS = 30
MOST_POINTS = 240


class ChartActions(RunScreen):
    """Keeps the focus by chart name: the set of charts may change with the run."""

    CSS = """
    #charts { height: 1fr; overflow: hidden; }
    .single #charts { layout: vertical; }
    ChartActions.roomy #ribbon, .roomy #charts { margin-top: 1; }
    """
    focus_name = ""
    enlarged = False

    def chart_names(self) -> Sequence[str]:
        """The current charts, in the order of the tab key."""
        return ()

    @property
    def chart_in_focus(self) -> str:
        """The focused chart, or the first one."""
        names = self.chart_names()
        return self.focus_name if self.focus_name in names else next(iter(names), "")

    async def action_focus_chart(self, by: int) -> None:
        """Focus another chart."""
        names = self.chart_names()
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
        session.smoothing = SMOOTHINGS[at % len(SMOOTHINGS)]
        weight = session.smoothing
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
        return time_line.aligned_ribbon(
            view, self.room.width, session.glyphs, self.plot_area(), session.axis
        )

    def show_part(self, selector: str, lines: Sequence[Line]) -> None:
        """A block of lines that is as high as its content."""
        part = self.query_one(selector, Rows)
        part.set_class(not lines, "gone")
        part.styles.height = max(1, len(lines))
        part.show(lines)

    def draw_figure(self, chart: Chart, time: TimeScale, place: Placed, step: int) -> list[Line]:
        """A chart over time."""
        return figure(
            chart,
            time,
            (place.width, place.height),
            self.session.glyphs,
            step=step,
            smoothing=self.session.smoothing,
            focused=place.name == self.chart_in_focus,
            ticks=place.last,
        )

    def show_stacks(self, layout: ChartLayout, lines: Mapping[str, list[Line]]) -> None:
        """Lay out and show the charts; those without room are hidden."""
        places = {chart.name: chart for stack in layout.stacks for chart in stack}
        self.set_class(len(layout.stacks) < 2, "single")
        for rows in self.query("#charts Rows").results(Rows):
            name = (rows.id or "").removeprefix("chart-")
            rows.display = name in places
            if name in places:
                rows.styles.height, rows.styles.width = places[name].height, places[name].width
                rows.show(lines[name])


def hidden_line(hidden: Sequence[str], width: int) -> Line:
    """Names of the hidden charts, and the key that shows them."""
    names = ", ".join(name.replace("-", " ") for name in hidden)
    text = shortened(f" not shown: {names}", max(0, width - 18))
    return pad([Span(text, "faint"), Span("   tab", "accent"), Span(" shows them", "faint")], width)
