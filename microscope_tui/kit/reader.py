"""The reader thread: finds runs and reads them; never touches a widget.

It increments version numbers; the screens poll them at their own pace.
"""

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from microscope_tui.runlog import RunFile, safe_text
from microscope_tui.sources import SourceRequest
from microscope_tui.watch import FileEvents, Fleet

_WORK_S, _PAUSE_S = 0.012, 0.001  # lets the screen take the lock and the processor
_HUSH_S = 0.05
_AFTER_A_KEY_S = 0.3  # longer than the repeat of a held key: finished runs can wait
_IDLE_S = 0.25
_SHORT_S, _PAINTING_S = 0.15, 0.5
_HELD_BACK_S, _RESTS = 0.05, 9  # at least nine times as long as the last look took


class Reader:
    """The reader thread. The methods are for the thread of the screens and return at once, except
    ``stop``.
    """

    def __init__(self, fleet: Fleet, may_leave: Callable[[], bool]) -> None:
        """``may_leave``: whether a newer run may replace the open one."""
        self.fleet = fleet
        self.events = FileEvents()
        self.first_look = threading.Event()
        """Set once the search has finished and part of the run was read."""
        self.painted = threading.Event()
        """Set once it is on the screen: drawing needs the processor."""
        self.switches = 0
        """Incremented when another run is opened."""
        self._may_leave = may_leave
        self._chosen: RunFile | None = None  # opened by the user: a newer run does not replace it
        self._wanted: SimpleQueue[tuple[RunFile, SourceRequest | None]] = SimpleQueue()
        self._quiet_until = self._judging_from = self._rested = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name="log-reader", daemon=True)

    def start(self) -> None:
        """Begin to search and read; see ``first_look``."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for it up to a second."""
        self._stop.set()
        self.events.stop()
        self._thread.join(timeout=1.0)
        if not self._thread.is_alive():  # else its second process ends with this one
            self.fleet.close()

    def pause(self) -> None:
        """Leave the processor to the screen for a moment."""
        self._quiet_until = time.monotonic() + _HUSH_S

    def key_pressed(self) -> None:
        """The same, and judge no finished run while keys are held."""
        self.pause()
        self._judging_from = time.monotonic() + _AFTER_A_KEY_S

    def choose(self, file: RunFile, request: SourceRequest | None = None) -> None:
        """Open a run and stay with it; ``request``: how other tools are read from then on."""
        self._chosen = file
        self._wanted.put((file, request))

    def _read(self) -> None:
        try:
            self._follow()
        except Exception as error:  # a bug: the screen keeps what was read and reports it
            if self.fleet.open is not None:
                self.fleet.open.error = f"reading stopped: {safe_text(repr(error), 200)}"
            self.switches += 1
            self.first_look.set()

    def _follow(self) -> None:
        self._read_first()
        while not self._stop.is_set():
            self._choose_run(searched=self.fleet.search())
            begun = time.thread_time()
            if self.fleet.turn():
                self._give_way()
                continue
            pause = self._until_next_look(time.thread_time() - begun)
            self._watch_open_run()
            self._rest(time.monotonic() + pause)

    def _read_first(self) -> None:
        """Until something can be shown: a short log has no overview, and is read in one go."""
        self._choose_run(searched=self.fleet.search(now=True))
        watch, until = self.fleet.open, time.monotonic() + _SHORT_S
        while watch and not watch.sampled and watch.advance() and time.monotonic() < until:
            pass
        self.first_look.set()
        self.painted.wait(_PAINTING_S)
        self._rested = time.monotonic()

    def _give_way(self) -> None:
        """Pause where the screen or the training needs the processor."""
        if (pause := self._quiet_until - time.monotonic()) > 0:
            self._stop.wait(pause)
        elif time.monotonic() - self._rested > _WORK_S:
            watch = self.fleet.open
            pause = _PAUSE_S
            if watch is None or watch.complete:  # else the user waits for it, and it is short
                training = watch is not None and watch.shown.end is None
                if training or self.fleet.follows_others:  # half of a core: it may train here
                    pause = _WORK_S
            self._stop.wait(pause)
            self._rested = time.monotonic()

    def _until_next_look(self, took: float) -> float:
        """In seconds: few while a source holds back a step that may not be complete.

        ``took``: seconds that the last look at all runs took.
        """
        watch = self.fleet.open
        if watch is None or not watch.file.foreign:
            return _IDLE_S
        source = watch.source
        if watch.error is not None or source.exhausted or source.deleted:
            return _IDLE_S
        return min(_IDLE_S, max(_HELD_BACK_S, source.wait_s(), _RESTS * took))

    def _watch_open_run(self) -> None:
        """Only a run log, once it has been read: a reader of a database changes files beside it."""
        watch = self.fleet.open
        if watch is not None and watch.complete and not (watch.file.foreign or self.fleet.piped):
            self.events.watch(watch.path)

    def _rest(self, until: float) -> None:
        """Judge finished runs for half of the time until then, or until the log changes."""
        while (now := time.monotonic()) < until and not self._stop.is_set():
            if not self._wanted.empty():
                return
            undisturbed = max(self._judging_from, self._quiet_until)
            if undisturbed > now:
                pause = min(undisturbed, until) - now
            elif self.fleet.judge_finished():
                pause = time.monotonic() - now  # as long as it worked
            else:
                pause = until - now
            if self.events.wait(pause):
                return

    def _choose_run(self, *, searched: bool) -> None:
        wanted = None
        watch = self.fleet.open
        request = None
        while not self._wanted.empty():  # the latest request counts
            wanted, request = self._wanted.get_nowait()
        if wanted is not None and request is not None:
            self.fleet.read_as(request)
            self.fleet.search(now=True)
            path = wanted.path
            watch = None
            wanted = next((run for run in self.fleet.runs if run.path == path), wanted)
        asked = wanted is not None
        runs = self.fleet.runs
        if wanted is None and searched and runs and self._chosen is None:
            wanted = runs[0]
        if wanted is None or (watch is not None and watch.path == wanted.path):
            return
        if asked or self.fleet.may_switch(self._may_leave()):
            self.fleet.open_run(wanted)
            self.switches += 1
