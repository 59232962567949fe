"""Several runs in one chart."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import ClassVar

from microscope_tui.draw.heat import after
from microscope_tui.draw.spans import Span, dim, with_notes
from microscope_tui.kit import keys
from microscope_tui.kit.chart_screen import ChartScreen
from microscope_tui.kit.keys import key, pair
from microscope_tui.kit.session import Session
from microscope_tui.runlog import plural
from microscope_tui.screens.course.run_course import RunCourse
from microscope_tui.screens.course.together import (
    MOST_RUNS,
    Across,
    numbers_together,
    together_chart,
    together_lines,
)
from microscope_tui.watch import RunView

_REFRESH_S = 2.0


class TogetherScreen(ChartScreen):
    """The selected runs, or the newest; a worker thread reads their logs."""

    BINDINGS: ClassVar = [
        keys.BACK,
        *pair(
            "number",
            key("together.previous", "up,k", "number(-1)", "previous number"),
            key("together.next", "down,j", "number(1)", "next number"),
        ),
        key("together.axis", "x", "axis", "x axis: steps, tokens, time", "axis"),
        key("chart.smooth", "e", "smooth", "smooth the curves", "smooth"),
        keys.SVG,
        *keys.EVERYWHERE,
    ]
    PARTS = ("header", "together-title", ("charts", "chart-number"), "together-runs")

    drawn_number = "loss"
    across = Across.STEPS
    _last_read = 0

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._courses: dict[Path, RunCourse] = {}

    async def draw(self, view: RunView, columns: int, rows: int) -> None:
        courses = self._chosen()
        if not self.busy and self._last_read != self._tick():
            self._last_read = self._tick()
            self.run_worker(self._read(courses), group="together")
        runs = Span(f"  {plural(len(courses), 'run')}", "title")
        title = [runs, dim(f"   over {self.across}")]
        notes = [] if len(courses) > 1 else ["select runs with space on screen 4"]
        chart, scale = together_chart(courses, self.drawn_number, self.across, self.points())
        lines = together_lines(courses, self.drawn_number, columns)
        self.show("together-title", [with_notes(title, notes, columns)], height=1)
        self.show("together-runs", lines, height=len(lines))
        room = max(4, rows - 3 - len(lines))
        self.draw_charts([["number"]], {"number": chart}, scale, room, 0)

    def _chosen(self) -> Sequence[RunCourse]:
        cards = self.session.fleet.cards()
        chosen = [card for card in cards if card.selected] or cards
        known = {path: course for path, course in self._courses.items() if not course.replaced}
        files = [card.file for card in chosen[:MOST_RUNS]]
        self._courses = {file.path: known.get(file.path) or RunCourse(file) for file in files}
        return list(self._courses.values())

    async def _read(self, courses: Sequence[RunCourse]) -> None:
        stop = threading.Event()
        try:
            for course in courses:
                await asyncio.to_thread(course.read_on, stop.is_set)
        finally:
            stop.set()
        await self.redraw_if_current()

    def state_now(self) -> tuple[object, ...]:
        """Logs are read on at every tick."""
        return self._tick(), *(course.progress for course in self._courses.values())

    def _tick(self) -> int:
        return int(monotonic() / _REFRESH_S)

    async def action_number(self, by: int) -> None:
        names = numbers_together(list(self._courses.values()))
        if by < 0:
            names.reverse()
        self.drawn_number = after(self.drawn_number, names)
        await self.redraw()

    async def action_axis(self) -> None:
        self.across = after(self.across, list(Across))
        await self.redraw()
