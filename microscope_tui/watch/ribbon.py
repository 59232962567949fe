"""The time ribbon: a range of steps in columns, each with its worst severity.

The maximum, never the mean: ten critical steps in a hundred thousand must be visible. It also shows
what comes after the shown step, so that users can move there.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from microscope_tui.diagnosis import Episode, Severity
from microscope_tui.watch.run_watch import RunWatch


@dataclass(slots=True)
class Mark:
    """One column of the time ribbon."""

    severity: Severity | None = None
    onset: bool = False
    """A finding above a note begins here."""
    restart: bool = False
    evaluation: bool = False


def ribbon_of(watch: RunWatch, window: tuple[int, int], count: int) -> list[Mark]:
    """The marks of ``count`` equal parts of ``window``."""
    marks = [Mark() for _ in range(count)]
    for step in watch.history.restarts if watch.history else ():
        if (at := column_of(step, window, count)) is not None:
            marks[at].restart = True
    for event in watch.shown.evaluations:
        at = None if event.step is None else column_of(event.step, window, count)
        if at is not None:
            marks[at].evaluation = True
    newest = watch.latest.record.step if watch.latest else 0
    episodes = watch.diagnosis.episodes if watch.diagnosis else ()
    for mark, severity in zip(
        marks, worst_of_columns(episodes, window, count, newest), strict=True
    ):
        mark.severity = severity
    for episode in episodes:
        at = column_of(episode.onset, window, count)
        if at is not None and episode.severity > Severity.INFO:
            marks[at].onset = True
    return marks


def column_of(step: int, window: tuple[int, int], count: int) -> int | None:
    """The column that holds ``step``; ``None`` outside of the window."""
    first, last = window
    if not first <= step <= last:
        return None
    return min(count - 1, math.floor((step - first) * count / (last - first + 1)))


def worst_of_columns(
    episodes: Iterable[Episode], window: tuple[int, int], count: int, newest: int
) -> list[Severity | None]:
    """The worst severity in each of ``count`` equal parts of ``window``."""
    worst: list[Severity | None] = [None] * count
    for episode in episodes:
        for since, until, severity in episode.stretches(newest):
            first, last = max(since, window[0]), min(until, window[1])
            if first > last:
                continue
            a, b = (column_of(step, window, count) or 0 for step in (first, last))
            for at in range(a, b + 1):
                worst[at] = max(worst[at] or severity, severity)
    return worst
