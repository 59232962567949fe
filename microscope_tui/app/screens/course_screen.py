"""The course of the run: an overview of five charts, or any number that the log has."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from microscope_tui.app import keys
from microscope_tui.app.keys import key, pair
from microscope_tui.app.screens.chart_screens import TABS, Charts, ChartScreen
from microscope_tui.lines import (
    OVERVIEW,
    Chart,
    Line,
    Number,
    Span,
    beside,
    course_charts,
    dim,
    label_of,
    loss_answer,
    margin_of,
    matches,
    number_chart,
    number_line,
    numbers_of,
    pad,
    plot_area,
    time_scale,
)
from microscope_tui.runlog import Values, plural
from microscope_tui.watch import (
    NumberCourse,
    Reading,
    RouterHealth,
    RunView,
    course_of,
    kept_numbers,
    router_health,
)

_COURSE = ("loss", "balance", "max-load", "gradient-norm", "learning-rate")
_CHARTS = {"grad_norm": "gradient-norm", "learning_rate": "learning-rate"}
"""Numbers that the overview has under another name."""
_LIST_FROM = 100
"""Columns from which the list is beside the overview; below it appears with the first key."""
_WIDTHS = ((140, 36), (_LIST_FROM, 31), (72, 28), (0, 20))
_NO_HEALTH = RouterHealth((), ())


class CourseScreen(ChartScreen):
    """Any numbers of the run on one time axis: did the loss react, and what else moved?"""

    CSS = f"""
    {ChartScreen.CSS}
    #body {{ layout: horizontal; height: 1fr; }}
    #numbers {{ height: 1fr; }}
    #answer, #hidden {{ height: 1; }}
    .roomy #answer, .roomy #numbers {{ margin-top: 1; }}
    """
    BINDINGS: ClassVar = [
        key("screen.back", "escape", "leave", "stop reading the log, or back", "back"),
        *pair(
            "number",
            key("number.previous", "up,k", "move(-1)", "previous number"),
            key("number.next", "down,j", "move(1)", "next number"),
        ),
        key("number.choose", "enter", "choose", "draw this number", "draw"),
        key("number.second", "v", "second", "this number as a second line, or not", "second"),
        *keys.FILTER,
        *keys.in_list("number"),
        *TABS,
        key("chart.enlarge", "z", "enlarge", "enlarge the chart", "enlarge"),
        key("chart.smooth", "e", "smooth", "smooth the curves", "smooth"),
        *keys.ALERTS,
        *keys.TIME,
        *keys.OUT,
        *keys.EVERYWHERE,
    ]
    PARTS = (
        *("header", "answer"),
        ("body", "numbers", ("charts", *map("chart-{}".format, _COURSE), "chart-number")),
        *("hidden", "ribbon"),
    )

    pattern = ""
    cursor = ""
    """The number under the cursor of the list; at first the one that is drawn."""
    _shown_names: Sequence[str] = (OVERVIEW,)
    _health: tuple[object, RouterHealth] = (None, _NO_HEALTH)
    _known: tuple[object, dict[str, None]] = (None, {})
    _readings: Sequence[Reading] = ()

    # Where things are

    @property
    def list_width(self) -> int:
        """Cells of the list; 0 where the charts need them."""
        columns = self.room.width
        moved = self.cursor not in ("", OVERVIEW)
        at_rest = not (moved or self.session.numbers or self.pattern)
        if self.enlarged or (columns < _LIST_FROM and at_rest):
            return 0
        return next(width for least, width in _WIDTHS if columns >= least)

    def columns(self) -> int:
        return self.room.width - 1 - self.list_width

    def plot_area(self) -> tuple[int, int]:
        numbers = self.session.numbers
        start, width = plot_area(self.columns())
        margin = margin_of(map(label_of, numbers)) if len(numbers) > 1 else 0
        return start + self.list_width, width - (margin if width > 3 * margin else 0)

    def state_now(self) -> tuple[object, ...]:
        return *super().state_now(), *(round(one.progress, 2) for one in self._readings)

    # Drawing

    async def draw(self, view: RunView, columns: int, rows: int) -> None:
        session = self.session
        moment = "" if session.time.following else f"{self.moment(view)} "
        answer = loss_answer(view, columns - len(moment), session.selected)
        self.show("answer", [[*answer, Span(moment, "accent")]])
        room = self.rows_of_charts(rows, 3)
        values = self.values()
        self._readings = ()
        charts = self._charts(view, values)
        self.read_on(self._readings)
        self._draw_list(numbers_of(view, values, self._names(values)), room)
        time = time_scale(view, session.axis)
        self.draw_charts([list(charts)], charts, time, room, view.step)

    def _names(self, values: Mapping[str, float | Values]) -> Sequence[str]:
        """The numbers that are kept, and those of the lines that were seen: some have more."""
        watch = self.session.watch
        assert watch is not None
        if self._known[0] != (watch, watch.generation):
            self._known = (watch, watch.generation), {}
        seen = self._known[1]
        seen.update(dict.fromkeys(values))
        return *kept_numbers(watch), *seen

    def _draw_list(self, numbers: Sequence[Number], room: int) -> None:
        width = self.list_width
        self.query_one("#numbers").set_class(not width, "gone")
        every = [Number(OVERVIEW), *numbers]
        shown = [n for n in every if matches(self.pattern, f"{n.label} {n.name}")]
        self._shown_names = [number.name for number in shown]
        if not width:
            return
        at = self._at()
        title = f"{plural(len(shown), 'number')}" if self.pattern else "numbers"
        lines: list[Line] = [
            pad([dim(f" {title} "), Span(self.filter_note(width - 12), "accent")], width)
        ]
        for index in self.in_view(at, len(shown), max(1, room - 1)):
            number = shown[index]
            lines.append(
                number_line(number, width - 1, self._mark(number.name), chosen=index == at)
            )
        self.show("numbers", lines, width=width)

    def _mark(self, name: str) -> str:
        """Whether a number is drawn, and as which line."""
        drawn = self.session.numbers or (OVERVIEW,)
        return "●○"[drawn.index(name)] if name in drawn else " "

    def _at(self) -> int:
        """The place of the cursor in the list."""
        names = self._shown_names
        name = self.cursor or next(iter(self.session.numbers), OVERVIEW)
        return names.index(name) if name in names else 0

    def _charts(self, view: RunView, values: Mapping[str, float | Values]) -> Charts:
        """The overview, or the chosen numbers in one chart."""
        chosen = self.session.numbers
        if not chosen:
            return course_charts(view, self._router_health(view))
        charts = [self._chart(view, name, values.get(name)) for name in chosen]
        chart = beside(*charts) if len(charts) == 2 else charts[0]
        return {"number": chart}

    def _chart(self, view: RunView, name: str, value: float | Values | None) -> Chart:
        watch = self.session.watch
        assert watch is not None
        health = self._router_health(view) if name in ("balance", "max-load") else _NO_HEALTH
        own = course_charts(view, health)
        if (as_drawn := _CHARTS.get(name, name)) in own:
            return own[as_drawn]
        if name in kept_numbers(watch):
            return number_chart(name, course_of(watch, name, self.points(), view.window), value)
        reading = self.reading([name])
        said = self.how_far(reading)
        if reading is None:
            return number_chart(name, NumberCourse(), value, said)
        self._readings = *self._readings, reading
        return number_chart(name, reading.course(name, self.points(), view.window), value, said)

    def _router_health(self, view: RunView) -> RouterHealth:
        """The worst of all layers, computed once for a state of the run and the window."""
        watch, points = self.session.watch, self.points()
        assert watch is not None
        key = (watch, watch.generation, watch.version, view.window, points)
        if self._health[0] != key:  # it iterates over all layers
            self._health = (key, router_health(watch, points, view.window))
        return self._health[1]

    # Keys

    async def action_leave(self) -> None:
        if not self.stop_reading():
            await self.app.run_action("app.pop_screen")
            return
        self.show_message("stopped: enter reads on", "accent")
        await self.redraw()

    async def action_move(self, by: int) -> None:
        names = self._shown_names
        if names:
            self.cursor = names[max(0, min(len(names) - 1, self._at() + by))]
            await self.redraw()

    async def action_choose(self) -> None:
        await self._draw_numbers(() if self._under == OVERVIEW else (self._under,))

    async def action_second(self) -> None:
        """Add the number under the cursor, to the loss where none is drawn; or remove it."""
        drawn, name = self.session.numbers, self._under
        if name == OVERVIEW or name == (drawn or ("loss",))[0]:
            self.show_message("choose another number: it is drawn beside the first one", "dim")
            return
        first = (drawn or ("loss",))[:1]
        await self._draw_numbers(first if name in drawn else (*first, name))

    @property
    def _under(self) -> str:
        """The number under the cursor, as far as the filter shows it."""
        names = self._shown_names
        return names[self._at()] if names else OVERVIEW

    async def _draw_numbers(self, names: tuple[str, ...]) -> None:
        self.session.numbers = names
        self._stop.set()  # what another number needs
        self.stopped, self.problem = False, ""
        await self.redraw()
