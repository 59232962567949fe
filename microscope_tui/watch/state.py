"""The state of a run in one word, from its last event and the age of its log."""

import time
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from microscope_tui.runlog import EventRecord

SLOW_S = 5.0
STALE_S = 60.0
CRASHED_S = 600.0


class RunState(StrEnum):
    WAITING = "waiting"
    NO_DATA = "no router data"
    """Of another tool, over, and no key is known as a router's."""
    LIVE = "live"
    SLOW = "slow"
    STALE = "stale"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    CRASHED = "crashed?"
    DELETED = "deleted"
    ARCHIVED = "archived"
    """Compressed: its end is known only after unpacking it."""
    ERROR = "error"
    UNKNOWN = ""
    """Not read yet."""

    @property
    def live(self) -> bool:
        """Whether new steps are expected any moment."""
        return self in (RunState.LIVE, RunState.SLOW)

    @property
    def ended(self) -> bool:
        """Whether no more steps are expected; a crash is inferred from silence."""
        return self in _ENDED or self is RunState.NO_DATA


_ENDED = frozenset(
    (RunState.FINISHED, RunState.STOPPED, RunState.FAILED, RunState.CRASHED, RunState.DELETED)
)


def age_of(modified: float, now: float | None = None, changed_at: float | None = None) -> float:
    """Seconds since the last change, never below zero.

    File servers have their own clocks: no file is older than the time since we saw it change
    (``changed_at``, by the monotonic clock).
    """
    age = max(0.0, (now or time.time()) - modified)
    return age if changed_at is None else min(age, max(0.0, time.monotonic() - changed_at))


def _usual(step_times_s: Sequence[float]) -> float:
    return sorted(step_times_s)[len(step_times_s) // 2] if step_times_s else 1.0


def state_of(
    age_s: float | None,
    *,
    deleted: bool,
    has_steps: bool,
    end: EventRecord | None,
    step_times_s: Sequence[float],
    logs_its_end: bool = True,
) -> RunState:
    """By the last event, else by the age of the file against the usual step. A writer that need not
    log its end is not taken for crashed."""
    if deleted:
        return RunState.DELETED
    if not (has_steps or logs_its_end) and (end is not None or (age_s or 0.0) > CRASHED_S):
        return RunState.NO_DATA
    if end is not None:
        own = {"finished": RunState.FINISHED, "failed": RunState.FAILED}
        return own.get(end.reason, RunState.STOPPED)
    if age_s is None or not has_steps:
        return RunState.WAITING
    usual = _usual(step_times_s)
    if logs_its_end and age_s > max(CRASHED_S, 10 * usual):
        return RunState.CRASHED
    if age_s > max(STALE_S, 10 * usual):
        return RunState.STALE
    return RunState.SLOW if age_s > max(SLOW_S, 3 * usual) else RunState.LIVE


class Life(NamedTuple):
    """In the words of screens, which wait longer if it had long pauses."""

    state: RunState
    """Decides the colour."""
    word: str
    """What is printed for it."""
    remark: str = ""
    """Behind the word, in words; often empty."""

    @property
    def outdated(self) -> bool:
        """Whether the source has been busy for so long that the verdict may be another by now."""
        return self.word == _BUSY


def life_of(
    state: RunState,
    age_s: float | None,
    step_times_s: Sequence[float],
    longest_s: float,
    step: int,
    planned: int | None,
) -> Life:
    """``state``, counted from twice the longest pause on."""
    usual = _usual(step_times_s)
    if age_s is not None and state in (RunState.STALE, RunState.CRASHED):
        if age_s <= max(STALE_S, 10 * usual, 2 * longest_s):
            return Life(RunState.SLOW, RunState.SLOW)
        if state is RunState.STALE:
            brief = f"{usual:.2g} s" if usual < 99.5 else f"{usual / 60:.0f} min"
            return Life(state, "stalled", f"usually {brief}" if step_times_s else "")
        if planned and step >= planned:
            return Life(RunState.FINISHED, RunState.FINISHED, "no end record")
    return Life(state, state)


_BUSY = "busy"


def busy_text(since: float | None) -> str:
    """``busy since 12:04:31``; empty if it is not, or for a few seconds only."""
    if since is None or time.time() - since < SLOW_S:
        return ""
    return time.strftime(f"{_BUSY} since %H:%M:%S", time.localtime(since))


def life_of_busy(life: Life, since: float | None) -> Life:
    """``life`` of a run whose source has been busy ``since`` then: without colour after 60 s."""
    text = busy_text(since)
    if since is None or not text:
        return life
    if time.time() - since > STALE_S:
        return Life(RunState.WAITING, _BUSY, text.removeprefix(f"{_BUSY} "))
    return life._replace(remark=text)
