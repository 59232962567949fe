"""The course of a run: an overview of five charts, or any number that the log has."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from microscope_tui.diagnosis import Severity
from microscope_tui.draw.charts import Chart, beside, course_chart, loss_answer, names_width
from microscope_tui.draw.numbers import COURSE, OVERVIEW, label_of, number_line, numbers_of, quoted
from microscope_tui.draw.spans import Span, dim, pad
from microscope_tui.draw.time_line import time_scale
from microscope_tui.draw.words import matches
from microscope_tui.kit import keys
from microscope_tui.kit.base import Part
from microscope_tui.kit.chart_screen import TABS, ChartScreen
from microscope_tui.kit.glossary import ALERTS, CHARTS, HEADER, LAYERS, MARGIN, TIME
from microscope_tui.kit.keys import key, pair
from microscope_tui.kit.prompts import filter_note
from microscope_tui.watch import Column, Quantity, RunView, kept_numbers, worst_of_layers

_LIST_FROM = 100
"""Columns from which the list is beside the overview too."""
_COMPARED = 240
"""Columns in which the loss is compared, whatever the size of the window."""
Numbers = Mapping[str, tuple[float | None, Severity | None]]
"""By name: the value at the shown step, and how grave a finding about the number is."""
_WORST = {"balance": Quantity.BALANCE, "max-load": Quantity.LOAD}


NUMBERS = {
    "overview": "loss, balance, load, gradient norm and learning rate, a chart each",
    "z-loss, highest logit": "mean of the squared logsumexp of a router's logits; the largest "
    "of them",
    "router gradient": "norm of the gradient of a router's weights; here the mean of the layers",
    "disagreement": "share of the choices that another engine makes differently",
    "tokens/s, step time (s), memory (bytes)": "speed, seconds a step, peak of the device",
    "●, +": "drawn as the first line; as the second one",
    "log axis": "the highest value is more than 100 times the usual one",
}


class CourseScreen(ChartScreen):
    CSS = f"""
    {ChartScreen.CSS}
    #body {{ layout: horizontal; height: 1fr; }}
    #answer, #hidden {{ height: 1; }}
    .roomy #answer, .roomy #numbers {{ margin-top: 1; }}
    """
    WORDS: ClassVar[Mapping[str, str]] = {
        **CHARTS,
        **NUMBERS,
        **MARGIN,
        **LAYERS,
        **ALERTS,
        **HEADER,
        **TIME,
    }
    BINDINGS: ClassVar = [
        keys.BACK,
        *pair(
            "number",
            key("number.previous", "up,k", "move(-1)", "previous number"),
            key("number.next", "down,j", "move(1)", "next number"),
        ),
        key("number.choose", "enter", "choose", "draw this number", "draw"),
        key("number.second", "v", "second", "draw this number too, or no longer", "second"),
        keys.FILTER,
        *keys.in_list("number"),
        *TABS,
        key("chart.enlarge", "z", "enlarge", "enlarge the chart", "enlarge"),
        key("chart.smooth", "e", "smooth", "smooth the curves", "smooth"),
        *keys.ALERTS,
        *keys.TIME,
        *keys.OUT,
        *keys.EVERYWHERE,
    ]
    PARTS: ClassVar[Sequence[Part]] = (
        *("header", "answer"),
        ("body", "numbers", ("charts", *map("chart-{}".format, COURSE), "chart-number")),
        *("hidden", "ribbon"),
    )

    AT_FIRST = OVERVIEW
    """First of the list, and drawn until another number is chosen."""
    pattern = ""
    cursor = ""
    """The number under the cursor of the list; at first the one that is drawn."""
    _listed: Sequence[str] = (AT_FIRST,)
    _list_of: tuple[RunView, int] | None = None
    """What the list was drawn for: a move of the cursor draws no chart."""
    _worst: tuple[object, Mapping[str, Sequence[Column]]] = (None, {})

    @property
    def numbers(self) -> tuple[str, ...]:
        """The numbers that were chosen, up to two."""
        return self.session.numbers

    @numbers.setter
    def numbers(self, names: tuple[str, ...]) -> None:
        self.session.numbers = names

    @property
    def list_width(self) -> int:
        """Cells of the list; 0 where the charts need them."""
        columns = self.room.width
        used = self.numbers or self.pattern or self.cursor not in ("", self.AT_FIRST)
        if self.enlarged or not (used or columns >= _LIST_FROM):
            return 0
        return max(20, min(32, columns * 2 // 5))

    def columns(self) -> int:
        return self.room.width - 1 - self.list_width

    def plot_area(self) -> tuple[int, int]:
        start, width = super().plot_area()
        names = names_width(self.columns(), named=len(self.numbers) > 1)
        return start + self.list_width, width - names

    async def draw(self, view: RunView, columns: int, rows: int) -> None:
        session, room = self.session, self.rows_of_charts(rows, 3)
        moment = self.session.unless_live(view)
        compared = session.view(_COMPARED, 1, ()) or view
        answer = loss_answer(compared, columns - len(moment), session.selected)
        self.show("answer", [[*answer, Span(moment, "accent")]])
        self.draw_list(view, room)
        charts = {name: self._chart(view, name) for name in self.numbers or COURSE}
        if self.numbers:
            drawn = list(charts.values())
            charts = {"number": beside(*drawn) if len(drawn) > 1 else drawn[0]}
        charts = {n: chart for n, chart in charts.items() if chart.measured or n not in COURSE[1:]}
        time = time_scale(view, session.axis)
        self.draw_charts([list(charts)], charts, time, room, view.step)

    def numbers_listed(self, view: RunView) -> Numbers:
        """What the list shows; numbers that findings quote come first."""
        watch, entry = self.session.watch, self.session.shown_entry
        assert watch is not None  # there is a view of it
        values = entry.numbers() if entry is not None else {}
        about = quoted(finding for finding, _ in view.findings)
        found = numbers_of(view, values, (*kept_numbers(watch), *self.numbers), about)
        return {name: (value, about.get(name)) for name, value in found.items()}

    def draw_list(self, view: RunView, room: int) -> None:
        """The list of numbers in ``room`` lines, around the cursor."""
        self._list_of = view, room
        width = self.list_width
        numbers = {self.AT_FIRST: (None, None), **self.numbers_listed(view)}
        shown = (n for n in numbers if matches(self.pattern, f"{label_of(n)} {n}"))
        self._listed = list(shown) or [self.AT_FIRST]
        self.query_one("#numbers").set_class(not width, "gone")
        title = [dim(" numbers "), Span(filter_note(self.pattern, width - 10), "accent")]
        lines = [pad(title, width)]
        marks = dict(zip(self.numbers or (self.AT_FIRST,), "●+", strict=False))
        at = self._at
        for index in self.in_view(at, len(self._listed), room - 1):
            name, chosen = self._listed[index], index == at
            mark = marks.get(name, " ")
            lines.append(number_line(name, *numbers[name], width - 1, mark=mark, chosen=chosen))
        self.show("numbers", lines, width=width)

    def _chart(self, view: RunView, name: str) -> Chart:
        watch, points = self.session.watch, self.points()
        assert watch is not None
        if name in _WORST:
            of = (watch, watch.generation, watch.version, view.window, points)
            if self._worst[0] != of:  # it iterates over all layers
                found = {
                    n: worst_of_layers(watch, q, points, view.window) for n, q in _WORST.items()
                }
                self._worst = (of, found)
        return course_chart(view, name, self._worst[1].get(name, ())) or self.number(view, name)

    @property
    def _at(self) -> int:
        name = self.cursor or next(iter(self.numbers), self.AT_FIRST)
        return self._listed.index(name) if name in self._listed else 0

    async def action_move(self, by: int) -> None:
        width = self.list_width
        self.cursor = self._listed[max(0, min(len(self._listed) - 1, self._at + by))]
        if self._list_of is not None and self.list_width == width:
            self.draw_list(*self._list_of)
            self.draw_last_line()
        else:
            await self.redraw()

    async def action_choose(self) -> None:
        name = self._listed[self._at]
        if name != self.AT_FIRST:
            await self._choose((name,))
        elif matches(self.pattern, name):
            await self._choose(())
        else:
            self.show_message("no number matches", "dim")

    async def action_second(self) -> None:
        """Beside the first, by default the loss; or no longer."""
        first, *second = self.numbers or ("loss",)
        name = self._listed[self._at]
        if name in (first, OVERVIEW):
            self.show_message("choose another number to draw beside the first one", "dim")
        elif name in second:
            await self._choose((first,))
        else:
            await self._choose((first, name))

    async def _choose(self, names: tuple[str, ...]) -> None:
        self.numbers = names
        self._stop.set()  # another number is wanted now
        await self.redraw()
