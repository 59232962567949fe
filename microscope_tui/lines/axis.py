"""Units of the time axis: steps, run time, or the clock."""

import time as clock
from enum import StrEnum

DAYS_FROM_S = 2 * 86400.0
"""Longer clock axes are labelled with days."""


class Axis(StrEnum):
    """The unit of the time axis. Columns always hold equal numbers of logged steps."""

    STEP = "step"
    RUN_TIME = "run time"
    CLOCK = "clock"


def axis_label(axis: Axis, step: int, time: float | None, start: float | None) -> str:
    """A label of the axis; the step if no time was logged.

    Args:
        time: when the step was written, Unix seconds; ``start`` when the run began.
    """
    if axis is Axis.RUN_TIME and time is not None and start is not None:
        return duration(max(0.0, time - start))
    if axis is Axis.CLOCK and time is not None:
        try:
            return clock.strftime("%d %b %H:%M:%S", clock.localtime(time))
        except (ValueError, OverflowError, OSError):
            return f"{step:,}"  # not a valid date
    return f"{step:,}"


def shorter_labels(label: str) -> list[str]:
    """``label`` and shorter forms of it for narrow screens, the longest first."""
    labels = [label]
    if ":" in label:  # 24 Nov 22:41:33
        labels += [label.split(" ")[-1], label.split(" ")[-1][:5]]
    elif " " in label:  # 10h 05m
        labels.append(label.split(" ")[0])
    return labels


def duration(seconds: float) -> str:
    """``2d 03h``, ``3h 12m``, ``4m 05s``, ``9s``."""
    whole = int(seconds)
    for size, unit, rest, small in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size:,}{unit} {whole % size // rest:02d}{small}"
    return f"{whole}s"
