"""The course of the run: loss, routers, gradients and learning rate on one time axis.

It answers one question: did the loss react?
"""

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical

from microscope_tui.app import keys
from microscope_tui.app.actions.chart_actions import (
    MOST_POINTS,
    RIBBON_FROM_ROWS,
    ROOMY_FROM_ROWS,
    ChartActions,
    hidden_line,
)
from microscope_tui.app.widgets.rows import Rows
from microscope_tui.lines import Span, arranged, course_charts, loss_answer, time_scale
from microscope_tui.watch import RouterHealth, RunView, router_health

_NAMES = ("loss", "balance", "max-load", "gradient-norm", "learning-rate")
_NOTHING = RouterHealth((), ())


class CourseScreen(ChartActions):
    """Charts on one time axis, labelled once, at the bottom."""

    CSS = f"""
    {ChartActions.CSS}
    #answer, #hidden {{ height: 1; }}
    .roomy #answer {{ margin-top: 1; }}
    """
    BINDINGS: ClassVar[list[BindingType]] = [*keys.COURSE]

    _names: Sequence[str] = ()
    _health: tuple[object, RouterHealth] = (None, _NOTHING)

    def compose(self) -> ComposeResult:
        glyphs = self.session.glyphs
        yield Rows(glyphs, id="header")
        yield Rows(glyphs, id="answer")
        with Vertical(id="charts"):
            for name in _NAMES:
                yield Rows(glyphs, id=f"chart-{name}")
        yield Rows(glyphs, id="hidden")
        yield Rows(glyphs, id="ribbon")
        yield Rows(glyphs, id="keys")

    def chart_names(self) -> Sequence[str]:
        return self._names

    async def redraw(self) -> None:
        session, (columns, rows) = self.session, self.room
        points = min(MOST_POINTS, 2 * columns)
        view = session.view(points, self.ribbon_columns(), range(0))
        if view is None:
            return
        if self.draw_small(view):
            return
        roomy, with_ribbon = rows >= ROOMY_FROM_ROWS, rows >= RIBBON_FROM_ROWS
        self.set_class(roomy, "roomy")
        moment = "" if session.time.following else f"{self.moment(view)} "
        answer = loss_answer(view, columns - len(moment), session.selected)
        self.query_one("#answer", Rows).show([[*answer, Span(moment, "accent")]])
        self._draw_charts(view, points, rows - 3 - with_ribbon - 3 * roomy)
        self.query_one("#ribbon").set_class(not with_ribbon, "gone")
        self.draw_frame(view)

    def _draw_charts(self, view: RunView, points: int, room: int) -> None:
        columns = self.room.width
        charts = course_charts(view, self._health_of(view, points))
        self._names = list(charts)
        focus, time = self.chart_in_focus, time_scale(view, self.session.axis)
        layout = arranged([self._names], focus, (columns - 1, room), enlarged=self.enlarged)
        hides = bool(layout.hidden) and not self.enlarged
        if hides:
            layout = arranged([self._names], focus, (columns - 1, room - 1))
        self.show_part("#hidden", [hidden_line(layout.hidden, columns)] if hides else [])
        places = [place for stack in layout.stacks for place in stack]
        self.show_stacks(
            layout,
            {
                place.name: self.draw_figure(charts[place.name], time, place, view.step)
                for place in places
            },
        )

    def _health_of(self, view: RunView, points: int) -> RouterHealth:
        """Recomputed only when the history changes: it walks over all layers."""
        watch = self.session.watch
        if watch is None:
            return _NOTHING
        key = (watch, watch.generation, watch.version, view.window, points)
        if self._health[0] != key:
            self._health = (key, router_health(watch, points, view.window))
        return self._health[1]
