"""The time machine: which step of a run is shown, and in which window.

While following, the newest step is shown. Otherwise a step is pinned and the whole screen shows it.
The window is the range of steps that curves and ribbon cover. What is typed after ``:``:

* ``12410`` ``12,410`` ``12k``: a step; ``end`` is the newest
* ``50%``: this share of the steps of the run
* ``+100`` ``-2k``: steps from the shown one
* ``14:30``: local time, on the latest day of the run that has it
* ``-2h`` ``-30min``: before the newest record
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from datetime import datetime, time, timedelta

from microscope_tui.draw.words import bytes_of
from microscope_tui.runlog import PipedLog, SpooledLog, safe_text
from microscope_tui.watch import Pin, RunWatch, Window, kept_steps, pin, pin_at

_NEXT_SPEED = {0: 1, 1: 4, 4: 16, 16: 0}
"""Playback speeds, in columns of the ribbon per second."""
_LEAST_STEPS = 20
MOST_CHARACTERS = 24
"""Of what is typed in a message about it."""
_NUMBER = re.compile(r"([+-]?)([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(k?)")
_BEFORE = re.compile(r"-([0-9]+)(h|min)")
_UNITS = {"h": "hours", "min": "minutes"}
_CLOCK = re.compile(r"([0-9]{1,2}):([0-9]{2})")
_MINUTE_S = 60.0


class TimeCursor:
    """Which step and window of the open run are shown. See the top of this file.

    What reads from the disk is for a worker thread.
    """

    def __init__(self, watch: Callable[[], RunWatch | None]) -> None:
        self._watch = watch
        self._pin: Pin | None = None
        self._window: Window | None = None
        self.speed = 0

    @property
    def newest_step(self) -> int:
        """0 before the first."""
        watch = self._watch()
        if watch is None:
            return 0
        return watch.last_step

    @property
    def shown_step(self) -> int:
        """The pinned step, or the newest."""
        return self.pin.step if self.pin else self.newest_step

    @property
    def pin(self) -> Pin | None:
        """``None`` follows the run. Dropped when the log is replaced."""
        pinned, watch = self._pin, self._watch()
        if pinned is not None and (watch is None or watch.generation != pinned.generation):
            self._pin = None
        return self._pin

    @property
    def following(self) -> bool:
        """Whether the newest step is shown, also when there are more."""
        return self.pin is None

    def reset(self) -> None:
        """Follow another run, with all of it in view."""
        self._pin = self._window = None
        self.speed = 0

    def toggle_follow(self) -> None:
        """Stop playback; else pin the newest step, or follow again."""
        if self.speed:
            self.speed = 0
            return
        watch = self._watch()
        if self.pin is not None:
            self._pin = None
        elif watch is not None:
            self._pin = pin(watch)

    @property
    def window(self) -> Window | None:
        """Around the shown step; ``None`` for the whole run."""
        if self._window is None:
            return None
        (first, last), shown = self._window, self.shown_step
        span = last - first + 1
        if self.following or shown > last:
            first = shown - span + 1
        elif shown < first:
            first = shown
        return self._put_window(first, span)

    def zoom(self, by: float) -> None:
        """To ``by`` times as many steps; the shown one keeps its place where possible."""
        newest, shown = self.newest_step, self.shown_step
        first, last = self.window or Window(1, newest)
        span = max(min(_LEAST_STEPS, newest), round((last - first + 1) * by))
        place = (shown - first) / max(1, last - first)
        self._put_window(round(shown - place * (span - 1)), span)

    def _put_window(self, first: int, span: int) -> Window | None:
        newest = self.newest_step
        first = max(1, min(first, newest - span + 1))
        self._window = Window(first, first + span - 1) if span < newest else None
        return self._window

    def why_no_past(self) -> str | None:
        """``None`` if other steps can be shown."""
        watch = self._watch()
        if watch is None or watch.latest is None:
            return "no step yet"
        if kept_steps(watch) is not None:
            return None
        if isinstance(watch.source, PipedLog):
            return self.past_of_pipe() or "a pipe cannot be rewound without a spool (--spool)"
        if watch.source.seekable:
            return "steps were rewritten here: wait until the log is read"
        return "compressed logs cannot be rewound: decompress it first"

    def step_by(self, by: int) -> str | None:
        """Move by logged steps; the problem, if any. Reads from the disk."""
        shown = self.shown_step
        if by < 0:
            return self.go_to(max(1, shown + by))
        found = self._moment(shown + by)
        if isinstance(found, Pin) and found.step <= shown:  # none was logged in between: the next
            later = range(shown + by, self.newest_step)
            found = self._moment(later[bisect_left(later, True, key=self._is_past) :].start)
        return self._look_at(found)

    def _is_past(self, step: int) -> bool:
        """Whether later steps were logged up to ``step``, or may have been."""
        found = self._moment(step)
        return not isinstance(found, Pin) or found.step > self.shown_step

    def go_to(self, step: int) -> str | None:
        """Show a step, or follow the newest; the problem, if any. Reads from the disk."""
        problem, watch = self._look_at(self._moment(step)), self._watch()
        if problem or self.following or watch is None or step < 1:
            return problem
        kept = kept_steps(watch)  # of a pipe
        return self.past_of_pipe() if kept and not kept[0] <= step <= kept[1] else None

    def go(self, typed: str) -> str | None:
        """Show the place that was typed; the problem, if any. Reads from the disk."""
        watch, newest = self._watch(), self.newest_step
        if watch is None or watch.latest is None:
            return "no step yet"
        self.speed = 0
        try:
            place = parse_place(typed, shown=self.shown_step, newest=newest)
            if not isinstance(place, int):
                history, newest_s = watch.history, watch.latest.record.time
                place = step_at(place, history.steps, history.times, newest_s)
        except BadPlace as error:
            return str(error)
        problem = self.go_to(max(1, min(place, newest)))
        if problem is None and place > newest:
            return f"step {place:,} is not in the log: showing the newest, {newest:,}"
        return problem

    def past_of_pipe(self) -> str | None:
        """The limits of the spooled history; ``None`` if it is complete."""
        watch = self._watch()
        if watch is None or not isinstance(watch.source, SpooledLog):
            return None
        spool = watch.source.spool
        if spool is None or not (spool.start or spool.problem):
            return None
        kept = kept_steps(watch)
        if kept is None:
            return f"no time travel: {spool.problem or 'nothing is stored yet'}"
        (first, last), size = kept, bytes_of(spool.limit)
        if spool.problem:
            return f"time travel from step {first:,} to {last:,}: {spool.problem}"
        return f"time travel from step {first:,}: the spool is full (--spool {size})"

    def play_on(self, columns: float, ribbon: int) -> str | None:
        """Move on by ``columns`` of a ribbon of ``ribbon`` columns; the problem, if any.

        Playback ends at the newest step. Reads from the disk.
        """
        first, last = self.window or Window(1, self.newest_step)
        by = max(1, round(columns * (last - first + 1) / max(1, ribbon)))
        problem = self.step_by(by)
        if problem or self.following:
            self.speed = 0
        return problem

    def next_speed(self) -> int:
        """The one after the present; 0 ends playback."""
        return _NEXT_SPEED[self.speed]

    def _look_at(self, moment: Pin | str | None) -> str | None:
        if isinstance(moment, str):
            return moment
        self._pin = moment
        return None

    def _moment(self, step: int) -> Pin | str | None:
        """The last logged step at or before ``step``; ``None`` for the newest, or a problem in
        words.
        """
        watch = self._watch()
        if watch is not None and 0 < self.newest_step <= step:
            return None
        problem = self.why_no_past()
        if problem or watch is None:
            return problem or "no step yet"
        try:
            found = pin_at(watch, step)
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"
        return found or "not found: the log is still being read, or has just changed"


class BadPlace(ValueError):
    """The message says what to type."""


def parse_place(text: str, *, shown: int, newest: int) -> int | time | timedelta:
    """A step (a number is not clamped to the run), a time of day, or a time before the newest.

    ``shown``, ``newest``: steps that the text may refer to. ``BadPlace``: it means none of them.
    """
    typed = text.strip()
    if len(typed) > MOST_CHARACTERS:
        raise BadPlace(f"{safe_text(typed, MOST_CHARACTERS)} is not a place: it is too long")
    if typed.lower() == "end":
        return newest
    if found := re.fullmatch(r"([0-9]{1,3})%", typed):
        if int(found[1]) > 100:
            raise BadPlace(f"{typed}: the run ends at 100%")
        return round(int(found[1]) / 100 * newest)
    if found := _NUMBER.fullmatch(typed):
        sign, number, thousands = found.groups()
        count = int(f"{sign}{number}".replace(",", ""))
        if thousands:
            count *= 1000
        if not sign:
            return count
        return max(0, min(newest, shown + count))
    if found := _BEFORE.fullmatch(typed):
        return timedelta(**{_UNITS[found[2]]: min(int(found[1]), 10**6)})
    if found := _CLOCK.fullmatch(typed):
        if int(found[1]) > 23 or int(found[2]) > 59:
            raise BadPlace(f"{typed}: not a time of day; the last one is 23:59")
        return time(int(found[1]), int(found[2]))
    said = safe_text(typed or "nothing", MOST_CHARACTERS)
    raise BadPlace(f"{said} is not a place: try 12k, 50%, -100, 14:30, -2h or end")


def step_at(
    when: time | timedelta, steps: Sequence[int], times: Sequence[float], newest_s: float | None
) -> int:
    """The last of ``steps`` that was logged (``times``: Unix seconds or NaN) at or before ``when``.

    ``BadPlace``: the run has no such time of day, or no times.
    """
    if newest_s is None or not len(times) or times[0] != times[0]:
        raise BadPlace("this log has no times: go to a step")
    if isinstance(when, timedelta):
        wanted = newest_s - when.total_seconds()
    else:
        wanted = _latest(when, times[0], newest_s)
    logged = list(zip(steps, times, strict=False))  # the reader may be adding some
    return next((step for step, at in reversed(logged) if at <= wanted), steps[0])


def _latest(clock: time, first_s: float, newest_s: float) -> float:
    try:
        began, ended = datetime.fromtimestamp(first_s), datetime.fromtimestamp(newest_s)
    except (OverflowError, OSError, ValueError):
        raise BadPlace("this log has no clock times: go to a step") from None
    for back in range(3):
        moment = datetime.combine(ended.date() - timedelta(days=back), clock).timestamp()
        if first_s - _MINUTE_S < moment <= newest_s:
            return moment
    raise BadPlace(f"{clock:%H:%M} is outside this run: {began:%H:%M:%S} to {ended:%H:%M:%S}")
