"""What all screens share: the runs, the open one, the chosen layer, and the pinned moment.

A reader thread searches and reads. It never touches a widget: versions grow, and the screens look
at them at their own pace.
"""

import threading
import time
from pathlib import Path
from queue import SimpleQueue

from microscope_tui.report.glyphs import Glyphs
from microscope_tui.runlog.discover import RunFile
from microscope_tui.runlog.piped import PipedLog
from microscope_tui.runlog.safe_text import safe_text
from microscope_tui.watch.file_events import FileEvents
from microscope_tui.watch.fleet import Fleet
from microscope_tui.watch.moment import Pin, pin, pin_at
from microscope_tui.watch.run_watch import RunWatch
from microscope_tui.watch.view import RunView, view_of

_WORK_S, _PAUSE_S = 0.012, 0.001  # the screen has the lock and the processor in between
_HUSH_S = 0.05
_IDLE_S = 0.25
_PATIENCE_WITH_EVENTS = 4  # idle waits between two polls where events wake us anyway
_GRACE_S = 0.3  # an event may come a little after the bytes that it announces


class Session:
    """The state of one sitting at the microscope."""

    def __init__(self, fleet: Fleet, glyphs: Glyphs) -> None:
        self.fleet = fleet
        self.glyphs = glyphs
        self._selected = 0
        self._pin: Pin | None = None
        self.first_look = threading.Event()
        """Set once it is known whether there is a run, and a little of it was read."""
        self.events = FileEvents(fleet.root)
        self._chosen: RunFile | None = None  # opened by hand: nothing newer takes its place
        self._wanted: SimpleQueue[RunFile] = SimpleQueue()
        self._switches = 0
        self._quiet_until = 0.0
        self._stop = threading.Event()
        self._reader = threading.Thread(target=self._read, name="log-reader", daemon=True)

    def start(self) -> None:
        """Begin to read in the background."""
        self._reader.start()

    def stop(self) -> None:
        """End the reader."""
        self._stop.set()
        self.events.stop()
        self._reader.join(timeout=1.0)

    def hush(self) -> None:
        """Something is about to be drawn: the reader stands back until it is."""
        self._quiet_until = time.monotonic() + _HUSH_S

    @property
    def path(self) -> Path:
        """Where the runs are."""
        return self.fleet.root

    @property
    def watch(self) -> RunWatch | None:
        """The open run."""
        return self.fleet.open

    @property
    def version(self) -> tuple[int, int]:
        """Changes whenever the open run has something new to show."""
        return self.fleet.open_version, self._switches

    @property
    def selected(self) -> int:
        """Index of the chosen layer; the last one where the run has fewer than it had."""
        run = self.watch.run if self.watch is not None else None
        return min(self._selected, max(0, len(run.routers) - 1)) if run else self._selected

    @selected.setter
    def selected(self, index: int) -> None:
        self._selected = index

    @property
    def has_run(self) -> bool:
        """There is a run with at least one step to show."""
        return self.watch is not None and self.watch.latest is not None

    @property
    def is_blank(self) -> bool:
        """The open run was read and has no step to show."""
        watch = self.watch
        return watch is not None and watch.latest is None and (watch.complete or bool(watch.error))

    def shows(self, path: Path) -> bool:
        """The run at ``path`` is the open one, and there is something of it to show."""
        watch = self.watch
        if watch is None or watch.path != path:
            return False
        return watch.latest is not None or watch.complete or watch.error is not None

    @property
    def newest_step(self) -> int:
        """The latest step there is, 0 before the first."""
        latest = self.watch.latest if self.watch is not None else None
        return latest.record.step if latest is not None else 0

    @property
    def pin(self) -> Pin | None:
        """The moment that is looked at; ``None`` follows the run. A replaced log has no past."""
        pinned, watch = self._pin, self.watch
        if pinned is not None and (watch is None or watch.generation != pinned.generation):
            self._pin = None
        return self._pin

    @pin.setter
    def pin(self, moment: Pin | None) -> None:
        self._pin = moment

    @property
    def following(self) -> bool:
        """The newest step is shown, whatever comes."""
        return self.pin is None

    def toggle_follow(self) -> None:
        """Hold the present moment, or return to the live run."""
        if self.pin is not None:
            self.pin = None
        elif self.watch is not None:
            self.pin = pin(self.watch)

    @property
    def pipe_ended(self) -> bool:
        """The run came through a pipe, and nothing more will come."""
        source = self.watch.source if self.watch is not None else None
        return isinstance(source, PipedLog) and source.ended

    def how_it_watches(self) -> str:
        """Whether the file system announces changes, and why not where it does not."""
        if self.fleet.piped:
            return "the pipe has ended" if self.pipe_ended else "through a pipe"
        if self.events.mode == "events":
            return "file events"
        return f"polling: {self.events.reason}" if self.events.reason else "polling"

    def why_no_past(self) -> str | None:
        """Why no earlier step of the open run can be shown, in words; ``None`` if they can."""
        watch = self.watch
        if watch is None or watch.latest is None:
            return "no step yet"
        if watch.can_seek:
            return None
        if watch.source.seekable:
            return "steps were written again here: wait until all is read"
        if self.fleet.piped:
            return "a pipe has no way back: open the log itself"
        return "a packed log has no way back: unpack it"

    def step_by(self, by: int) -> str | None:
        """Look at a neighbour of the shown step; says what is in the way. Reads from the disk."""
        shown = self.pin.step if self.pin else self.newest_step
        if by < 0:
            return self.go_to(max(1, shown + by))
        missed, found = shown, self._moment(shown + by)
        while isinstance(found, Pin) and found.step <= shown:  # none was logged in between
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
        """Look at a step of the past; the newest one follows again. Says what is in the way.

        Reads from the disk: not for the thread that draws.
        """
        return self._look_at(self._moment(step))

    def _look_at(self, moment: Pin | str | None) -> str | None:
        if isinstance(moment, str):
            return moment
        self.pin = moment
        return None

    def _moment(self, step: int) -> Pin | str | None:
        """The last logged step at or before ``step``, ``None`` for the newest, or a problem."""
        watch = self.watch
        if watch is not None and 0 < self.newest_step <= step:
            return None
        problem = self.why_no_past()
        if problem or watch is None:
            return problem or "no step yet"
        try:
            found = pin_at(watch, step)
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"
        return found or "not to be found: the log is still being read, or changed just now"

    def choose(self, file: RunFile) -> None:
        """Open a run and stay there; the reader thread does it with its next turn."""
        self._chosen = file
        self._wanted.put(file)

    def view(self, columns: int, ribbon: int, only: range | None = None) -> RunView | None:
        """The present view, or the one of the pinned moment; ``None`` while there is no run."""
        if self.watch is None or self.watch.run is None:
            return None
        return view_of(self.watch, columns, ribbon, self.pin, only)

    def _read(self) -> None:
        try:
            self._follow()
        except Exception as error:  # a bug: what was read stays, and the screen says so
            if self.watch is not None:
                self.watch.error = f"reading stopped: {safe_text(repr(error), 200)}"
            self._switches += 1
            self.first_look.set()

    def _follow(self) -> None:
        self._choose_run(searched=self.fleet.search(now=True))
        if self.watch is not None and self.watch.latest is None:
            self.watch.advance()  # a short log has no overview, and is read in one go
        self.first_look.set()
        idle = woken = started = False
        rested, size = time.monotonic(), 0
        while not self._stop.is_set():
            self._choose_run(searched=self.fleet.search())
            if not started and (self.watch is None or self.watch.complete):
                started = True  # only now: the first picture comes before anything else
                if not self.fleet.piped:
                    self.events.start()
            if self.fleet.turn():
                if idle and not woken and self._size() > size:
                    self._doubt_events()
                idle = False
                if (hush := self._quiet_until - time.monotonic()) > 0:
                    self._stop.wait(hush)
                elif time.monotonic() - rested > _WORK_S:
                    self._stop.wait(self._pause())
                    rested = time.monotonic()
                continue
            size = self._size()
            idle, woken = True, self._wait()

    def _pause(self) -> float:
        """Half of a core is enough for the past of a run that may be training on this machine."""
        watch = self.watch
        if watch is not None and not watch.complete:
            return _PAUSE_S  # somebody waits for it, and it will not take long
        training = watch is not None and watch.shown.end is None
        return _WORK_S if training or self.fleet.follows_others else _PAUSE_S

    def _size(self) -> int:
        return self.watch.source.size if self.watch is not None else 0

    def _wait(self) -> bool:
        """Until something happens, or it is time to poll; true if an event woke us."""
        waits = _PATIENCE_WITH_EVENTS if self.events.mode == "events" else 1
        for _ in range(waits):
            if self.events.wait(_IDLE_S):
                return True
            if self._stop.is_set() or not self._wanted.empty():
                return False
        return False

    def _doubt_events(self) -> None:
        """The poll found what no event had announced."""
        if self.events.mode == "events" and not self.events.wait(_GRACE_S):
            self.events.poll_found_change()

    def _choose_run(self, *, searched: bool) -> None:
        """Open what was asked for, or the newest run where nothing is lost by going there."""
        wanted = None
        while not self._wanted.empty():  # the latest wish counts
            wanted = self._wanted.get_nowait()
        if wanted is not None and self.watch is not None and self.watch.path == wanted.path:
            return
        runs = self.fleet.runs
        if wanted is None and searched and runs and self._chosen is None:
            newest = runs[0]
            is_open = self.watch is not None and self.watch.path == newest.path
            if not is_open and self.fleet.may_switch(self.following):
                wanted = newest
        if wanted is not None:
            self.fleet.open_run(wanted)
            self.selected, self.pin = 0, None
            self._switches += 1
