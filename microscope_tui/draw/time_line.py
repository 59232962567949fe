"""Time on a screen: the ribbon with its notes, the ticks under a chart.

Columns are equal numbers of steps; their labels have the unit of the axis.
"""

import math
import time as clock
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

import msgspec

from microscope_tui.draw import words
from microscope_tui.draw.spans import (
    ROLE_OF_SEVERITY,
    Line,
    Span,
    dim,
    first_fitting,
    joined,
    line_width,
    merged,
    pad,
    placed,
    width_of,
    with_notes,
)
from microscope_tui.runlog import plural
from microscope_tui.watch import RunView, Window, column_of

RESTART, ONSET, EVALUATION = "restart", "onset", "evaluation"
_DAYS_FROM_S = 2 * 86400.0  # longer clock axes are labelled with days
_HEIGHTS = {1: "▂", 2: "▄", 3: "▇", 4: "▆"}
_FULL = 110  # columns from which notes are complete
_LEFT = 8  # cells before the first column, of the ribbon and of the notes
_LABEL_ROOM, _LABEL_GAP, _MOST_TICKS = 12, 4, 8


class Axis(StrEnum):
    """The unit of the time axis. Columns always hold equal numbers of logged steps."""

    STEP = "step"
    RUN_TIME = "run time"
    CLOCK = "clock"


def axis_label(axis: Axis, step: int, time: float | None, start: float | None) -> str:
    """The step if no time (Unix seconds) was logged."""
    if axis is Axis.RUN_TIME and time is not None and start is not None:
        return words.duration(max(0.0, time - start))
    if axis is Axis.CLOCK and time is not None:
        try:
            return clock.strftime("%d %b %H:%M:%S", clock.localtime(time))
        except (ValueError, OverflowError, OSError):
            return f"{step:,}"  # not a valid date
    return f"{step:,}"


def _shorter(label: str) -> list[str]:
    """``label`` and shorter forms of it, the longest first."""
    if ":" in label:  # 24 Nov 22:41:33
        return [label, label.split(" ")[-1], label.split(" ")[-1][:5]]
    return [label, label.split(" ")[0]]  # 10h 05m


def ribbon_width(columns: int) -> int:
    """Columns of the time ribbon on a screen of ``columns``."""
    return max(8, columns - (40 if columns >= 72 else 34))


def ribbon(view: RunView, columns: int, shown: str, axis: Axis = Axis.STEP) -> Line:
    """Severities over the window, with the cursor at the shown step."""
    line = [dim(_start(view, axis)), *_cells(view, ribbon_width(columns))]
    now = axis_label(axis, view.step, view.record.time if view.record else None, _began(view))
    line.append(Span("▏", "accent" if view.timeline.cursor is None else "faint"))
    room = columns - line_width(line) - 2
    ends = [(n, s) for s in (shown, shown.split(", ")[0]) for n in _shorter(now)]
    now, shown = next(((n, s) for n, s in ends if width_of(n + s) < room), ends[-1])
    return pad([*line, Span(f" {now} ", "value"), Span(shown, "accent"), Span(" ")], columns)


def aligned_ribbon(view: RunView, columns: int, plot: tuple[int, int], axis: Axis) -> Line:
    """Below a chart, whose time axis begins at ``plot[0]``, ``plot[1]`` wide."""
    start = pad([dim(_start(view, axis).strip()), Span(" ")], plot[0], "right")
    return pad([*start, *_cells(view, plot[1])], columns)


def _cells(view: RunView, width: int) -> Line:
    cells = []
    for mark in view.timeline.ribbon[:width]:
        cell = ("▁", "faint")
        if mark.restart:
            cell = ("╎", "accent")
        elif mark.severity is not None:
            cell = (_HEIGHTS[mark.severity], ROLE_OF_SEVERITY[mark.severity])
        cells.append(cell)
    if view.timeline.cursor is not None and cells:
        at = column_of(view.step, view.window, len(cells))
        if at is not None:
            cells[at] = ("┃", "accent")
    return merged(cells)


def _start(view: RunView, axis: Axis) -> str:
    """The text before the first column, of constant width."""
    if axis is Axis.STEP:
        first = view.window.first
        text = "step 0" if first == 1 else words.short_number(first)
    else:
        time = view.timeline.times[0] if view.timeline.times else None
        labels = _shorter(axis_label(axis, view.window.first, time, _began(view)))
        if axis is Axis.CLOCK and _takes_days(view.timeline.times):
            labels = [labels[0].rsplit(" ", 1)[0]]  # the day is more useful
        text = first_fitting(labels, _LEFT - 2, labels[-1])
    return f" {text[: _LEFT - 2]:<{_LEFT - 2}} "


def _began(view: RunView) -> float | None:
    return view.run.time if view.run is not None else None


def _takes_days(times: Sequence[float | None]) -> bool:
    known = [time for time in times if time is not None]
    return bool(known) and max(known) - min(known) > _DAYS_FROM_S


def notes(
    view: RunView,
    columns: int,
    hidden: Sequence[str],
    past: str = "",
    cursor: str = "",
) -> Line:
    """Under the ribbon: events, or what the ``cursor`` is on, and what is ``hidden``.

    ``past``: what limits the way back in time.
    """
    again = (
        view.judging.again and view.judging.share < 1.0
    )  # most important first: the last are dropped
    right = [*filter(None, [view.log.parts]), *hidden]
    if again:
        right.append(f"{view.judging.again}, judging again")
    if left_out := words.left_out(view):
        right.append(f"* {left_out}")
    if view.log.defects:
        which = (
            f" ({view.log.first_defects[0]})" if columns >= _FULL and view.log.first_defects else ""
        )
        right.append(f"{plural(view.log.defects, 'bad line')}{which}")
    if unread := words.unread(view):
        right.append(unread)
    if view.log.memory_limit is not None:
        right.append(f"history coarser: {words.bytes_of(view.log.memory_limit)} memory")
    if past:
        right.append(past)
    if view.step:
        first, last = view.window
        steps = max(1, round((last - first + 1) / ribbon_width(columns)))
        right.append(f"1 column = {plural(steps, 'step')}")
    if cursor:
        return with_notes([Span(f" {cursor}", "accent")], right, columns)
    shown = joined(right, columns // 2 if _labels(view) else columns - _LEFT)
    ticks = tick_line(view, columns - width_of(shown) - 2, ribbon_width(columns))
    return pad([*ticks, Span(" " + shown, "faint")], columns)


def tick_line(view: RunView, width: int, ribbon: int) -> Line:
    """Events below the ribbon, whose first column is at ``_LEFT``; ``ribbon``: its columns."""
    cells = [(" ", "")] * max(0, width)
    for step, text, role in _labels(view):
        column = column_of(step, view.window, ribbon)
        if column is None:
            continue
        at, label = _LEFT + column, f"{text} {step:,}"
        fits = placed(cells, at - len(label), f"{label}╵", role)
        if not fits and not placed(cells, at, f"╵{label}", role):
            placed(cells, at, "╵", role)
    for at, mark in enumerate(view.timeline.ribbon[:ribbon], start=_LEFT):
        if mark.evaluation:
            placed(cells, at, "╵", "faint")
    return merged(cells)


def _labels(view: RunView) -> Sequence[tuple[int, str, str]]:
    """Step, word and role of what gets a label, the most important first."""
    labels = []
    if view.worst is not None:
        finding = view.worst[0]
        labels.append((finding.onset, ONSET, ROLE_OF_SEVERITY[finding.severity]))
    return labels + [(step, RESTART, "dim") for step in reversed(view.timeline.restarts)]


class TimeMark(msgspec.Struct, frozen=True):
    """An event on the time axis of a chart."""

    step: int
    what: str
    """``restart``, ``onset`` or ``evaluation``."""
    role: str
    rule: str = ""
    """Of an onset."""


class TimeScale(msgspec.Struct, frozen=True):
    """The window of a view as the x axis of charts."""

    window: Window
    """The steps from the left to the right end."""
    cursor: int | None
    """The shown step; ``None`` while following."""
    marks: Sequence[TimeMark] = ()
    """The most important last."""
    axis: Axis = Axis.STEP
    steps: Sequence[int] = ()
    """Those of which ``times`` has the time."""
    times: Sequence[float | None] = ()
    """Unix seconds; ``None`` where it was not logged."""
    began: float | None = None
    """When the run began, Unix seconds."""
    labels: Mapping[int, str] = {}
    """Where the axis does not count steps: the texts of some positions."""

    def column_of(self, step: float, width: int) -> int | None:
        """``None`` outside the window."""
        return column_of(math.floor(step), self.window, width)

    def middles(self, dots: int) -> tuple[float, float]:
        """The middle of the first and of the last of ``dots`` equal stretches of the window.

        In steps from its first one: plotext rounds dots to 1e-8, for which steps in the millions
        are not exact enough. With these two on the outermost dots, columns are those of
        ``column_of``.
        """
        steps = self.window[1] - self.window[0] + 1
        half = steps / dots / 2
        return half, steps - half

    def tick_line(self, width: int) -> Line:
        """The labels below a chart of this width, each centred below its step."""
        cells, role = [(" ", "")] * width, "faint"
        for step in self._ticks(width):
            text, at = self._label(step), self.column_of(step, width)
            start = max(0, min((at or 0) - len(text) // 2, width - len(text)))
            if at is not None and placed(cells, start, text, "", margin=2):
                role = "dim"
        return [Span("".join(char for char, _ in cells), role)]

    def _ticks(self, width: int) -> Sequence[int]:
        if self.labels:
            return list(self.labels)
        first, last = self.window
        if self.axis is not Axis.STEP:
            count = max(1, width // _LABEL_ROOM)
            return [first + (last - first) * i // max(1, count - 1) for i in range(count)]
        count = max(1, min(_MOST_TICKS, width // (len(f"{last:,}") + _LABEL_GAP)))
        rough = max(1.0, (last - first) / count)
        size = 10 ** math.floor(math.log10(rough))
        by = int(next((m * size for m in (1, 2, 5) if m * size >= rough), 10 * size))
        ticks = list(range(-(-first // by) * by, last + 1, by))
        return ticks if len(ticks) > 1 else [first, last]

    def _label(self, step: int) -> str:
        at = bisect_right(self.steps, step) - 1
        time = self.times[at] if 0 <= at < len(self.times) else None
        text = self.labels.get(step) or axis_label(self.axis, step, time, self.began)
        if self.axis is not Axis.CLOCK or time is None or " " not in text:
            return text
        day, hours = text.rsplit(" ", 1)
        return day if _takes_days(self.times) else hours


def time_scale(view: RunView, axis: Axis, layer: int | None = None) -> TimeScale:
    """The time axis of a view, with the events in its window.

    ``layer``: mark the onsets of this layer only; of all layers by default.
    """
    cursor = view.step if view.timeline.cursor is not None else None
    marks = tuple(_marks(view, layer))
    return TimeScale(
        view.window, cursor, marks, axis, view.timeline.axis, view.timeline.times, _began(view)
    )


def _marks(view: RunView, layer: int | None) -> Iterable[TimeMark]:
    """Most important last: it is drawn over the others."""
    for step, _ in view.timeline.evaluations:
        yield TimeMark(step, EVALUATION, "dim")
    for step in view.timeline.restarts:
        yield TimeMark(step, RESTART, "dim")
    for finding, _ in reversed(view.alerts):
        for episode in finding.episodes:
            if episode.active and layer in (None, episode.router_index):
                role = ROLE_OF_SEVERITY[episode.severity]
                yield TimeMark(episode.onset, ONSET, role, finding.rule)
