"""The time axis under a chart: the column of a step, ticks and events.

Columns are equal numbers of steps; their labels use the session's axis.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from microscope_tui.lines.axis import DAYS_FROM_S, Axis, axis_label
from microscope_tui.lines.spans import ROLE_OF_SEVERITY, Line, Span
from microscope_tui.watch import RunView, Window, column_of

RESTART, ONSET, EVALUATION = "restart", "onset", "evaluation"
_LABEL_ROOM, _LABEL_GAP, _MOST_TICKS = 12, 4, 8


@dataclass(frozen=True, slots=True)
class TimeMark:
    """An event at a step: a restart, the onset of an alert, an evaluation."""

    step: int
    what: str
    role: str


@dataclass(frozen=True, slots=True)
class TimeScale:
    """The window of a view as the x axis of charts."""

    window: Window
    cursor: int | None
    """The shown step; ``None`` while following."""
    marks: Sequence[TimeMark] = ()
    axis: Axis = Axis.STEP
    steps: Sequence[int] = ()
    times: Sequence[float | None] = ()
    """Times of ``steps``."""
    began: float | None = None

    def column_of(self, step: float, width: int) -> int | None:
        """The column of a step in ``width`` cells; ``None`` outside the window."""
        return column_of(math.floor(step), self.window, width)

    def middles(self, dots: int) -> tuple[float, float]:
        """The middle of the first and of the last of ``dots`` equal stretches of the window.

        In steps from its first one: plotext rounds dots to 1e-8, for which steps in the millions
        are not exact enough. A chart that puts these two on its outermost dots has the columns of
        ``column_of``.
        """
        steps = self.window[1] - self.window[0] + 1
        half = steps / dots / 2
        return half, steps - half

    def tick_line(self, width: int) -> Line:
        """Labels below their columns, as many as fit."""
        cells = [" "] * width
        free = 0
        for step in self._ticks(width):
            text, at = self._label(step), self.column_of(step, width)
            if at is None:
                continue
            start = max(0, min(at - len(text) // 2, width - len(text)))
            if start >= free and len(text) <= width:
                cells[start : start + len(text)] = text
                free = start + len(text) + 2
        return [Span("".join(cells), "faint" if not free else "dim")]

    def _ticks(self, width: int) -> Sequence[int]:
        """Round steps; on the other axes equal distances."""
        first, last = self.window
        count = max(1, width // _LABEL_ROOM)
        if self.axis is Axis.STEP:
            count = max(1, min(_MOST_TICKS, width // (len(f"{last:,}") + _LABEL_GAP)))
            rough = max(1.0, (last - first) / count)
            size = 10 ** math.floor(math.log10(rough))
            by = int(next((m * size for m in (1, 2, 5) if m * size >= rough), 10 * size))
            ticks = list(range(-(-first // by) * by, last + 1, by))
            return ticks if len(ticks) > 1 else [first, last]
        return [first + (last - first) * i // max(1, count - 1) for i in range(count)]

    def _label(self, step: int) -> str:
        at = bisect_right(self.steps, step) - 1
        time = self.times[at] if 0 <= at < len(self.times) else None
        text = axis_label(self.axis, step, time, self.began)
        if self.axis is not Axis.CLOCK or time is None or " " not in text:
            return text
        known = [t for t in self.times if t is not None]
        day, clock = text.rsplit(" ", 1)
        return day if max(known) - min(known) > DAYS_FROM_S else clock


def time_scale(view: RunView, axis: Axis = Axis.STEP, layer: int | None = None) -> TimeScale:
    """The time axis of a view, with the events in its window.

    Args:
        layer: mark the onsets of this layer only; of all layers by default.
    """
    return TimeScale(
        window=view.window,
        cursor=view.step if view.cursor is not None else None,
        marks=tuple(_marks(view, layer)),
        axis=axis,
        steps=view.axis,
        times=view.times,
        began=view.run.time if view.run is not None else None,
    )


def _marks(view: RunView, layer: int | None) -> Iterable[TimeMark]:
    """Most important last: it is drawn over the others."""
    for step, _ in view.evaluations:
        yield TimeMark(step, EVALUATION, "dim")
    for step in view.restarts:
        yield TimeMark(step, RESTART, "dim")
    for finding, _ in reversed(view.alerts):
        for episode in finding.episodes:
            if episode.active and layer in (None, episode.router_index):
                yield TimeMark(episode.onset, ONSET, ROLE_OF_SEVERITY[episode.severity])
