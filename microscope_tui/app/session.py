"""What all screens share: the run being watched, the chosen layer, and the pinned moment.

A reader thread finds the newest run and follows it. It never touches a widget: it bumps
``version``, and the screens look at that at their own pace.
"""

import threading
import time
from pathlib import Path

from microscope_tui.report.glyphs import Glyphs
from microscope_tui.runlog.discover import NoRuns, find_runs
from microscope_tui.runlog.safe_text import safe_text
from microscope_tui.watch.run_watch import RunWatch
from microscope_tui.watch.view import Pin, RunView, pin, view_of

_IDLE_S = 0.25
_RESCAN_S = 2.0
_ENDED = ("finished", "stopped", "failed", "crashed?", "deleted")


class Session:
    """The state of one sitting at the microscope."""

    def __init__(self, path: Path, glyphs: Glyphs) -> None:
        self.path = path
        self.glyphs = glyphs
        self.watch: RunWatch | None = None
        self.version = 0
        """Grows whenever there is something new to show."""
        self.selected = 0
        """Index of the chosen layer."""
        self.pin: Pin | None = None
        """The moment that is looked at; ``None`` follows the run."""
        self.first_look = threading.Event()
        """Set once it is known whether there is a run."""
        self._stop = threading.Event()
        self._reader = threading.Thread(target=self._read, name="log-reader", daemon=True)

    def start(self) -> None:
        """Begin to read in the background."""
        self._reader.start()

    def stop(self) -> None:
        """End the reader."""
        self._stop.set()
        self._reader.join(timeout=1.0)

    @property
    def has_run(self) -> bool:
        """There is a run with at least one step to show."""
        return self.watch is not None and self.watch.latest is not None

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
            self.version += 1
            self.first_look.set()

    def _follow(self) -> None:
        last_scan = -_RESCAN_S
        while not self._stop.is_set():
            if time.monotonic() - last_scan >= _RESCAN_S and self._may_switch():
                self._find()
                last_scan = time.monotonic()
            self.first_look.set()
            if self.watch is not None and self.watch.advance():
                self.version += 1
                # A slice is a few milliseconds of work; let the screen have the lock in between.
                self._stop.wait(0.001)
            else:
                self._stop.wait(_IDLE_S)

    def _may_switch(self) -> bool:
        """Look for a newer run only while nothing is lost by going there."""
        if self.watch is None or not self.has_run:
            return True
        return self.watch.complete and self.following and self.watch.state()[0] in _ENDED

    def _find(self) -> None:
        try:
            runs = find_runs(self.path)
        except (NoRuns, OSError):
            return  # said before the screen opened; a folder that vanished may come back
        if not runs or (self.watch is not None and self.watch.path == runs[0].path):
            return
        watch = RunWatch(runs[0])
        watch.open_overview()
        self.watch, self.selected = watch, 0
        self.version += 1
