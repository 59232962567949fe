"""The time ribbon: a stretch of a run in columns, each as bad as its worst step.

The maximum, never the mean: ten sick steps in a hundred thousand must be seen. It knows all that is
known now, also of what comes after the shown step, or nobody could scrub to it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from microscope_tui.diagnosis.episodes import Episode
from microscope_tui.diagnosis.reading import Severity
from microscope_tui.watch.run_watch import RunWatch


@dataclass(slots=True)
class Mark:
    """One column of the time ribbon."""

    severity: Severity | None = None
    onset: bool = False
    """A finding that is more than a note begins here."""
    restart: bool = False
    evaluation: bool = False


def ribbon_of(watch: RunWatch, window: tuple[int, int], count: int) -> list[Mark]:
    """The marks of ``count`` equal stretches of the steps of ``window``."""
    marks = [Mark() for _ in range(count)]
    for step in watch.history.restarts if watch.history else ():
        if (at := column_of(step, window, count)) is not None:
            marks[at].restart = True
    for event in watch.shown.evaluations:
        at = None if event.step is None else column_of(event.step, window, count)
        if at is not None:
            marks[at].evaluation = True
    newest = watch.latest.record.step if watch.latest else 0
    for episode in watch.diagnosis.episodes if watch.diagnosis else ():
        _mark(marks, episode, window, newest)
    return marks


def column_of(step: int, window: tuple[int, int], count: int) -> int | None:
    """The column that holds ``step``; ``None`` outside of the window."""
    first, last = window
    if not first <= step <= last:
        return None
    return min(count - 1, math.floor((step - first) * count / (last - first + 1)))


def _mark(marks: list[Mark], episode: Episode, window: tuple[int, int], newest: int) -> None:
    over = episode.recovered_at
    end = newest if over is None else max(episode.onset, over - 1)
    for since, until, severity in _stretches(episode, end):
        first, last = max(since, window[0]), min(until, window[1])
        if first > last:
            continue
        a, b = (column_of(step, window, len(marks)) or 0 for step in (first, last))
        for mark in marks[a : b + 1]:
            mark.severity = max(mark.severity or severity, severity)
    if episode.severity > Severity.INFO:
        at = column_of(episode.onset, window, len(marks))
        if at is not None:
            marks[at].onset = True


def _stretches(episode: Episode, end: int) -> Iterable[tuple[int, int, Severity]]:
    """First step, last step and severity: an episode was as bad from its onset as at its alarm."""
    grades = episode.grades
    if not grades:
        yield episode.onset, end, episode.severity
        return
    starts = [episode.onset, *(grade.step for grade in grades[1:])]
    ends = [*(step - 1 for step in starts[1:]), end]
    for since, until, grade in zip(starts, ends, grades, strict=True):
        yield since, until, grade.severity
