"""Screen 6 with several runs: one number of them in one chart, over steps, tokens or time."""

import asyncio
import math
import threading
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from itertools import accumulate, pairwise
from operator import mul
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import ClassVar

from microscope_tui.draw import words
from microscope_tui.draw.charts import Chart, Curve
from microscope_tui.draw.heat import after
from microscope_tui.draw.numbers import label_of
from microscope_tui.draw.spans import Line, Span, dim, pad, shortened, width_of, with_notes
from microscope_tui.draw.time_line import TimeScale
from microscope_tui.kit.base import is_busy
from microscope_tui.kit.glossary import CHARTS, HEADER, MARGIN, RUNS
from microscope_tui.kit.keys import key, with_keymap
from microscope_tui.measures import mean_of
from microscope_tui.runlog import (
    RunFile,
    RunReader,
    RunRecord,
    Source,
    StepEntry,
    UnknownFormat,
    plural,
    safe_text,
)
from microscope_tui.screens.course.screen import NUMBERS, CourseScreen, Numbers
from microscope_tui.watch import Column, History, RunView, Window
from microscope_tui.watch.history import MOST_LATER, rows_within
from microscope_tui.watch.scan import RowOf, Scan

_BYTES = 4 << 20
_PIECE_BYTES = 1 << 19
MOST_RUNS = 8
VALIDATION = "validation loss"
_ROLES = (*(f"ink:{number}" for number in range(MOST_RUNS - 1)), "value")
_TICKS = 5
_STRETCHES = 512  # of the run, each with its mean number of tokens
_REFRESH_S = 2.0
_OF_ONE_RUN = (
    *("number.second", "chart.next", "chart.previous", "time.axis"),
    *("time.zoom_in", "time.zoom_out", "time.show_all"),
)
_SHARED = [one for one in with_keymap(CourseScreen.BINDINGS, {}) if one.id not in _OF_ONE_RUN]


class Across(StrEnum):
    STEPS = "steps"
    TOKENS = "tokens"
    TIME = "time"


class RunCourse(Scan):
    """All numbers of one run; those of routers as the mean over the layers."""

    def __init__(self, file: RunFile) -> None:
        super().__init__(lambda *_: (), _BYTES)
        self.file = file
        self.lock = threading.Lock()
        self.replaced = False
        """Begin again: it is another log."""
        self.error = ""
        self._source: Source | None = None
        self._reader = RunReader(file.name)

    def _begun(self, run: RunRecord) -> tuple[History, RowOf]:
        return History({}, rows_within(_BYTES, MOST_LATER)), _numbers_of

    @property
    def progress(self) -> float:
        """Share of the log that was read, 0 … 1."""
        source = self._source
        return 0.0 if source is None else min(1.0, source.offset / max(1, source.size))

    @property
    def newest(self) -> dict[str, float | None]:
        """The numbers of the last step, by name; empty before the first."""
        if self.latest is None:
            return {}
        return {name: value for name, (value,) in _numbers_of(self.latest).items()}

    def read_on(self, cancelled: Callable[[], bool]) -> None:
        """Read to the end of the log, or until ``cancelled``; never raises because of the log."""
        try:
            source = self._source = self._source or self.file.open()
            while not cancelled():
                chunk = source.read(_PIECE_BYTES)
                self.replaced |= chunk.restarted and self.latest is not None
                with self.lock:
                    self._add(chunk.data)
                self.make_room(self.lock)
                if self.replaced or (not chunk.data and source.exhausted):
                    return
        except (OSError, UnknownFormat) as error:
            self.error = str(getattr(error, "strerror", None) or error)

    def _add(self, data: bytes) -> None:
        for entry in self._reader.feed(data):
            self.take(entry)
        self.commit()


def _numbers_of(entry: StepEntry) -> Mapping[str, tuple[float | None]]:
    found: dict[str, tuple[float | None]] = {}
    for name, number in entry.numbers().items():
        found[name] = (mean_of(number),) if isinstance(number, list) else (number,)
    return found


def numbers_together(courses: Sequence[RunCourse]) -> list[str]:
    """Numbers that any of the runs has, the losses first."""
    known = {name for course in courses if course.history for name in course.history.later}
    first = ["loss"]
    if any(course.evaluations for course in courses):
        first.append(VALIDATION)
    rest = sorted(known - {"loss"}, key=lambda name: (name.startswith("router."), label_of(name)))
    return [*first, *rest]


def together_chart(
    courses: Sequence[RunCourse],
    name: str,
    across: Across,
    points: int,
    cursor: int | None = None,
) -> tuple[Chart, TimeScale]:
    """A line for each run, of at most so many ``points``, and the axis.

    ``cursor``: a step to mark; other axes than that of the steps do not show it.
    """
    curves = [
        Curve(*_places(course, name, across, points), role, name=course.file.name)
        for course, role in zip(courses, _ROLES, strict=False)
    ]
    last = max((curve.steps[-1] for curve in curves if curve.steps), default=1)
    labels = {}
    if across is not Across.STEPS:
        spell = words.short_number if across is Across.TOKENS else words.duration
        labels = {last * at // _TICKS: spell(last * at // _TICKS) for at in range(_TICKS + 1)}
        cursor = None
    scale = TimeScale(Window(0, max(1, last)), cursor, labels=labels)
    chart = Chart(label_of(name), curves, bottom=None, spell=words.significant)
    return chart, scale


def _places(
    course: RunCourse, name: str, across: Across, points: int
) -> tuple[Sequence[int], Sequence[Column]]:
    with course.lock:
        history = course.history
        if not len(history):
            return (), ()
        steps = history.axis(points)
        if name == VALIDATION:
            steps = [event.step or 0 for event in course.evaluations]
        columns = _columns(course, name, points)
        places: Sequence[float | None] = steps
        if across is Across.TIME:
            places = [_time_at(history, step) for step in steps]
        elif across is Across.TOKENS:
            places = _tokens_at(history, steps)
    pairs = [(x, c) for x, c in zip(places, columns, strict=False) if x is not None]
    return [round(x) for x, _ in pairs], [column for _, column in pairs]


def _time_at(history: History, step: int) -> float | None:
    time, began = history.time_of(step), history.times[0]
    return None if time is None or began != began else time - began


def _tokens_at(history: History, steps: Sequence[int]) -> Sequence[float]:
    """Tokens of all steps up to these; empty where they were not logged."""
    if "tokens" not in history.later:
        return ()
    axis = history.axis(_STRETCHES)
    means = (column.mean for column in history.columns("tokens", 0, _STRETCHES))
    a_step = [max(0.0, mean) for mean in means]  # NaN, where none was logged, is not above 0.0
    lengths = [end - start for start, end in pairwise([*axis, history.last_step + 1])]
    before = [0.0, *accumulate(map(mul, a_step, lengths))]
    stretches = [max(0, bisect_right(axis, step) - 1) for step in steps]
    return [
        before[at] + a_step[at] * (step - axis[at] + 1)
        for step, at in zip(steps, stretches, strict=True)
    ]


def _columns(course: RunCourse, name: str, points: int) -> Sequence[Column]:
    history = course.history
    if name == VALIDATION:
        losses = [event.values.get("loss", math.nan) for event in course.evaluations]
        return [Column(loss, loss, loss) for loss in losses]
    if name not in history.later:
        return ()
    return history.columns(name, 0, points)


def together_lines(courses: Sequence[RunCourse], name: str, width: int) -> list[Line]:
    """One line per run: its colour, the last value of the number ``name``, and its step."""
    lines = []
    longest = max((width_of(course.file.name) for course in courses), default=0)
    room = max(8, min(longest, width - 44))
    for course, role in zip(courses, _ROLES, strict=False):
        with course.lock:
            newest = course.newest
            for column in _columns(course, VALIDATION, 1):
                newest[VALIDATION] = column.mean
            where = "no step yet"
            if course.latest:
                where = f"at step {course.latest.record.step:,}"
        if course.error:
            where = safe_text(course.error, 60)
        elif course.progress < 1.0:
            where = f"reading the log: {course.progress:.0%}"
        run = pad([Span(shortened(course.file.name, room))], room)
        said = words.significant(newest.get(name)) or "-"
        line = [Span("  ● ", role), *run, Span(f"{said:>10}  "), dim(where)]
        lines.append(pad(line, width))
    return lines


class TogetherScreen(CourseScreen, inherit_bindings=False):
    """The selected runs, or the newest; a worker thread reads their logs.

    It has the list and the keys of screen 6, without those for a second number, other charts and
    the zoom.
    A step that the user goes to is marked in the chart.
    """

    WORDS: ClassVar = {**CHARTS, **NUMBERS, **MARGIN, **RUNS, **HEADER}
    BINDINGS: ClassVar = [
        *_SHARED[:3],
        key("time.axis", "x", "next_axis", "x axis: steps, tokens, time", "axis"),
        *_SHARED[3:],
    ]
    PARTS = ("header", "answer", ("body", "numbers", ("charts", "chart-number")), "together-runs")

    AT_FIRST = "loss"
    numbers = ()
    across = Across.STEPS
    _last_read = 0
    _courses: Mapping[Path, RunCourse] = MappingProxyType({})
    """By their logs."""

    async def draw(self, view: RunView, columns: int, rows: int) -> None:
        courses = self._chosen()
        if not is_busy(self) and self._last_read != self._tick():
            self._last_read = self._tick()
            self.run_worker(self._read(courses), group="together")
        runs = Span(f"  {plural(len(courses), 'run')}", "title")
        title = [runs, dim(f"   over {self.across}")]
        notes = []
        if len(courses) == 1:
            notes.append("select runs with space on screen 4")
        self.show("answer", [with_notes(title, notes, columns)])
        name, *_ = self.numbers or (self.AT_FIRST,)
        lines = together_lines(courses, name, columns)
        self.show("together-runs", lines, height=len(lines))
        room = max(4, rows - 3 - len(lines))
        self.draw_list(view, room)
        pin = self.session.time.pin
        step = pin.step if pin is not None else None
        chart, scale = together_chart(courses, name, self.across, self.points(), step)
        self.draw_charts([["number"]], {"number": chart}, scale, room, 0)

    def _chosen(self) -> Sequence[RunCourse]:
        cards = self.session.fleet.cards()
        chosen = [card for card in cards if card.selected] or cards
        known = {path: course for path, course in self._courses.items() if not course.replaced}
        files = [card.file for card in chosen[:MOST_RUNS]]
        self._courses = {file.path: known.get(file.path) or RunCourse(file) for file in files}
        return list(self._courses.values())

    def numbers_listed(self, view: RunView) -> Numbers:
        return dict.fromkeys(numbers_together(list(self._courses.values())), (None, None))

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

    async def action_next_axis(self) -> None:
        self.across = after(self.across, list(Across))
        await self.redraw()
