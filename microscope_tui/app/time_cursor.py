"""The time machine: which step of a run is shown, and in which window.

While following, the newest step is shown. Otherwise a step is pinned and the whole screen shows it.
The window is the range of steps that curves and ribbon cover.
"""

from collections.abc import Callable

from microscope_tui.app.place import BadPlace, parse_place, step_at
from microscope_tui.lines import bytes_of
from microscope_tui.runlog import PipedLog
from microscope_tui.watch import Pin, RunWatch, Window, kept_steps, pin, pin_at

SPEEDS = (1, 4, 16)
"""Playback speeds, in columns of the ribbon per second."""
_LEAST_STEPS = 20


class TimeCursor:
    """The shown step and the window of the open run."""

    def __init__(self, watch: Callable[[], RunWatch | None]) -> None:
        self._watch = watch
        self._pin: Pin | None = None
        self._window: Window | None = None
        self.speed = 0
        """Playback speed, one of ``SPEEDS``; 0 while stopped."""

    @property
    def newest_step(self) -> int:
        """The newest step, 0 before the first."""
        watch = self._watch()
        latest = watch.latest if watch is not None else None
        return latest.record.step if latest is not None else 0

    @property
    def shown_step(self) -> int:
        """The step that everything on the screen shows."""
        return self.pin.step if self.pin else self.newest_step

    @property
    def pin(self) -> Pin | None:
        """The pinned step; ``None`` follows the run. Dropped when the log is replaced."""
        pinned, watch = self._pin, self._watch()
        if pinned is not None and (watch is None or watch.generation != pinned.generation):
            self._pin = None
        return self._pin

    @pin.setter
    def pin(self, moment: Pin | None) -> None:
        self._pin = moment

    @property
    def following(self) -> bool:
        """Whether the newest step is shown."""
        return self.pin is None

    def reset(self) -> None:
        """Reset for another run: follow it, with the whole run in view."""
        self._pin = self._window = None
        self.speed = 0

    def toggle_follow(self) -> None:
        """Pause, or follow the live run; playback stops at the shown step."""
        if self.speed:
            self.speed = 0
            return
        watch = self._watch()
        if self.pin is not None:
            self.pin = None
        elif watch is not None:
            self.pin = pin(watch)

    @property
    def window(self) -> Window | None:
        """The range in view, around the shown step; ``None`` for the whole run."""
        if self._window is None:
            return None
        first, last = self._window
        newest, shown = self.newest_step, self.shown_step
        span = last - first + 1
        if span >= newest:
            self._window = None
            return None
        if self.following or shown > last:
            first = shown - span + 1
        elif shown < first:
            first = shown
        first = max(1, min(first, newest - span + 1))
        self._window = Window(first, first + span - 1)
        return self._window

    def zoom(self, by: float) -> None:
        """Zoom to ``by`` times as many steps; the shown one keeps its place where possible."""
        newest, shown = self.newest_step, self.shown_step
        first, last = self.window or Window(1, newest)
        span = max(min(_LEAST_STEPS, newest), round((last - first + 1) * by))
        if span >= newest:
            self._window = None
            return
        place = (shown - first) / max(1, last - first)
        start = max(1, min(round(shown - place * (span - 1)), newest - span + 1))
        self._window = Window(start, start + span - 1)

    def show_all(self) -> None:
        """The whole run in view."""
        self._window = None

    def why_no_past(self) -> str | None:
        """Why other steps cannot be shown; ``None`` if they can."""
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
        """Move by logged steps; returns the problem, if any. Reads from the disk."""
        shown = self.shown_step
        if by < 0:
            return self.go_to(max(1, shown + by))
        missed, found = shown, self._moment(shown + by)
        while isinstance(found, Pin) and found.step <= shown:  # no step was logged in between
            missed, by = shown + by, 2 * by
            found = self._moment(shown + by)
        while not isinstance(found, str) and missed > shown:
            after = found.step if found else self.newest_step
            if after - missed <= 1:
                break
            middle = (missed + after) // 2
            nearer = self._moment(middle)
            if isinstance(nearer, Pin) and nearer.step > shown:
                found = nearer
            else:
                missed = middle
        return self._look_at(found)

    def go_to(self, step: int) -> str | None:
        """Show a step; the newest one follows again. Returns the problem, if any.

        Reads from the disk: not for the thread that draws.
        """
        return self._look_at(self._moment(step)) or self._why_not_all(step)

    def go(self, typed: str) -> str | None:
        """Show the place that was typed; returns the problem, if any. Reads from the disk."""
        watch, newest = self._watch(), self.newest_step
        if watch is None or watch.history is None or watch.latest is None:
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

    def _why_not_all(self, step: int) -> str | None:
        """Why the nearest step of a pipe is shown instead of ``step``; else ``None``."""
        watch = self._watch()
        if self.following or watch is None or watch.source.spool is None:
            return None
        kept, limits = kept_steps(watch), self.past_of_pipe()
        outside = kept is not None and not kept[0] <= step <= kept[1]
        return limits if outside and step >= 1 else None

    def past_of_pipe(self) -> str | None:
        """The limits of the spooled history of a pipe; ``None`` if it is complete."""
        watch = self._watch()
        spool = watch.source.spool if watch else None
        if watch is None or spool is None or not (spool.start or spool.problem):
            return None
        kept = kept_steps(watch)
        if kept is None:
            return f"no time travel: {spool.problem or 'nothing is stored yet'}"
        (first, last), size = kept, bytes_of(spool.limit)
        if spool.problem:
            return f"time travel from step {first:,} to {last:,}: {spool.problem}"
        return f"time travel from step {first:,}: the spool is full (--spool {size})"

    def play_on(self, columns: float, ribbon: int) -> str | None:
        """Play ``columns`` of a ribbon of ``ribbon`` columns; ends at the newest step."""
        first, last = self.window or Window(1, self.newest_step)
        by = max(1, round(columns * (last - first + 1) / max(1, ribbon)))
        problem = self.step_by(by)
        if problem or self.following:
            self.speed = 0
        return problem

    def next_speed(self) -> int:
        """The next speed: off, 1, 4, 16 columns per second, and off again."""
        speeds = (0, *SPEEDS)
        return speeds[(speeds.index(self.speed) + 1) % len(speeds)]

    def _look_at(self, moment: Pin | str | None) -> str | None:
        if isinstance(moment, str):
            return moment
        self.pin = moment
        return None

    def _moment(self, step: int) -> Pin | str | None:
        """The last logged step at or before ``step``, ``None`` for the newest, or a problem."""
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
