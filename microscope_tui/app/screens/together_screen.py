"""Several runs in one chart."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import ClassVar

from microscope_tui.app import keys
from microscope_tui.app.charts import figure
from microscope_tui.app.keys import key, pair
from microscope_tui.app.screens.base import BaseScreen
from microscope_tui.app.session import Session
from microscope_tui.lines import (
    MOST_RUNS,
    SMOOTHINGS,
    Across,
    Span,
    after,
    dim,
    numbers_together,
    pad,
    together_chart,
    together_lines,
    with_notes,
)
from microscope_tui.runlog import plural
from microscope_tui.watch import RunCourse, RunView

_POINTS = 240
_REFRESH_S = 2.0


class TogetherScreen(BaseScreen):
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
    PARTS = ("header", "together-title", "together-chart", "together-runs")

    number = "loss"
    across = Across.STEPS
    _read_at = 0
    """The tick of the last reading."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._courses: dict[Path, RunCourse] = {}

    async def draw(self, view: RunView, columns: int, rows: int) -> None:
        courses = self._chosen()
        if not self.busy and self._read_at != self._tick():
            self._read_at = self._tick()
            self.run_worker(self._read(courses), group="together")
        runs = Span(f"  {plural(len(courses), 'run')}", "title")
        title = [runs, dim(f"   over {self.across}")]
        notes = [] if len(courses) > 1 else ["select runs with space on the runs screen"]
        lines = together_lines(courses, self.number, columns)
        chart, scale = together_chart(courses, self.number, self.across, _POINTS)
        size = columns - 1, max(4, rows - 3 - len(lines))
        glyphs, smoothing = self.session.glyphs, self.session.smoothing
        drawn = figure(chart, scale, size, glyphs, step=0, smoothing=smoothing, focused=True)
        self.show("together-title", [with_notes(title, notes, columns)], height=1)
        self.show("together-chart", [pad(line, columns) for line in drawn], height=len(drawn))
        self.show("together-runs", lines, height=len(lines))

    def _chosen(self) -> Sequence[RunCourse]:
        """The selected runs, or the newest ones; what was read of them stays."""
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
        self.number = after(self.number, names)
        await self.redraw()

    async def action_axis(self) -> None:
        self.across = after(self.across, list(Across))
        await self.redraw()

    async def action_smooth(self) -> None:
        self.session.smoothing = after(self.session.smoothing, SMOOTHINGS)
        await self.redraw()
