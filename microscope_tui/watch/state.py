"""The state of a run in one word, from its last event and the age of its log."""

import time
from collections.abc import Sequence

from microscope_tui.runlog.records import EventRecord

SLOW_S, STALE_S, CRASHED_S = 5.0, 60.0, 600.0
ENDED = ("finished", "stopped", "failed", "crashed?", "deleted")
"""States from which nothing more is expected."""


def age_of(
    modified: float | None, now: float | None = None, changed_at: float | None = None
) -> float | None:
    """Seconds since the last change, never below zero.

    A file server has a clock of its own: no file is older than the time (``changed_at``, by the
    monotonic clock) since we saw it change.
    """
    if modified is None:
        return None
    age = max(0.0, (now or time.time()) - modified)
    return age if changed_at is None else min(age, max(0.0, time.monotonic() - changed_at))


def state_of(
    age_s: float | None,
    *,
    deleted: bool,
    has_steps: bool,
    end: EventRecord | None,
    step_times_s: Sequence[float],
) -> str:
    """``waiting``, ``live``, ``slow``, ``stale``, ``crashed?`` by the age of the file against the
    usual step; ``finished``, ``failed``, ``stopped`` by the last event; ``deleted``.
    """
    if deleted:
        return "deleted"
    if end is not None:
        return {"finished": "finished", "failed": "failed"}.get(end.reason, "stopped")
    if age_s is None or not has_steps:
        return "waiting"
    usual = sorted(step_times_s)[len(step_times_s) // 2] if step_times_s else 1.0
    if age_s > max(CRASHED_S, 10 * usual):
        return "crashed?"
    if age_s > max(STALE_S, 10 * usual):
        return "stale"
    return "slow" if age_s > max(SLOW_S, 3 * usual) else "live"
