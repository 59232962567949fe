"""One number of several runs in one chart, over steps, tokens or time."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from enum import StrEnum
from itertools import accumulate, pairwise
from operator import mul

from microscope_tui.draw import words
from microscope_tui.draw.charts import Chart, Curve
from microscope_tui.draw.numbers import label_of
from microscope_tui.draw.spans import Line, Span, dim, pad, shortened, width_of
from microscope_tui.draw.time_line import TimeScale
from microscope_tui.runlog import safe_text
from microscope_tui.screens.course.run_course import RunCourse
from microscope_tui.watch import Column, History, Window

MOST_RUNS = 8
VALIDATION = "validation loss"
_ROLES = (*(f"ink:{number}" for number in range(MOST_RUNS - 1)), "value")
_TICKS = 5
_STRETCHES = 512  # of the run, each with its mean number of tokens


class Across(StrEnum):
    STEPS = "steps"
    TOKENS = "tokens"
    TIME = "time"


def numbers_together(courses: Sequence[RunCourse]) -> list[str]:
    """Numbers that any of the runs has, the losses first."""
    known = {name for course in courses if course.history for name in course.history.later}
    evaluated = [VALIDATION] if any(course.evaluations for course in courses) else []
    rest = sorted(known - {"loss"}, key=lambda name: (name.startswith("router."), label_of(name)))
    return ["loss", *evaluated, *rest]


def together_chart(
    courses: Sequence[RunCourse], name: str, across: Across, points: int
) -> tuple[Chart, TimeScale]:
    """A line for each run, of at most so many ``points``, and the axis."""
    curves = [
        Curve(*_places(course, name, across, points), role, name=course.file.name)
        for course, role in zip(courses, _ROLES, strict=False)
    ]
    last = max((curve.steps[-1] for curve in curves if curve.steps), default=1)
    labels = {}
    if across is not Across.STEPS:
        spell = words.short_number if across is Across.TOKENS else words.duration
        labels = {last * at // _TICKS: spell(last * at // _TICKS) for at in range(_TICKS + 1)}
    scale = TimeScale(Window(0, max(1, last)), None, labels=labels)
    chart = Chart(label_of(name), curves, bottom=None, spell=words.significant)
    return chart, scale


def _places(
    course: RunCourse, name: str, across: Across, points: int
) -> tuple[Sequence[int], Sequence[Column]]:
    with course.lock:
        history = course.history
        if history is None or not len(history):
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
    a_step = [column.mean for column in history.columns("tokens", 0, _STRETCHES)]
    a_step = [tokens if tokens == tokens else 0.0 for tokens in a_step]
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
    if history is None or name not in history.later:
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
            step = course.latest.record.step if course.latest else 0
        where = f"at step {step:,}" if step else "no step yet"
        if course.error:
            where = safe_text(course.error, 60)
        elif course.progress < 1.0:
            where = f"reading the log: {course.progress:.0%}"
        run = pad([Span(shortened(course.file.name, room))], room)
        said = words.significant(newest.get(name)) or "-"
        line = [Span("  ● ", role), *run, Span(f"{said:>10}  "), dim(where)]
        lines.append(pad(line, width))
    return lines
