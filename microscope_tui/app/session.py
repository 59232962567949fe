"""Shared state of all screens: the runs, the open one, the step, and the view settings."""

import os
from collections.abc import Container, Hashable, Sequence
from pathlib import Path

from microscope_tui.app.anatomy import Anatomy
from microscope_tui.app.preferences import Preferences
from microscope_tui.app.reader import Reader
from microscope_tui.app.time_cursor import TimeCursor
from microscope_tui.diagnosis import Severity
from microscope_tui.lines import Axis, Glyphs, Look, Pattern, SteadyLevels, shade_level
from microscope_tui.routing import Mismatch
from microscope_tui.runlog import PipedLog, RunFile
from microscope_tui.watch import (
    Fleet,
    Pin,
    Recent,
    Reference,
    RunView,
    RunWatch,
    recent_of,
    reference_of,
    view_of,
)

NO_PREFERENCES = Preferences()


class Session:
    """The state of one session."""

    def __init__(
        self,
        fleet: Fleet,
        glyphs: Glyphs,
        preferences: Preferences = NO_PREFERENCES,
    ) -> None:
        self.fleet = fleet
        self.glyphs = glyphs
        self.preferences = preferences
        self.keymap = preferences.keymap
        self.steady = SteadyLevels()
        self.axis = Axis.STEP
        self.smoothing = 0.0
        """Smoothing weight of the charts; 0 for none."""
        self.in_tmux = "TMUX" in os.environ
        self._open: RunWatch | None = None
        self.time = TimeCursor(lambda: self.watch)
        self.reader = Reader(fleet, lambda: self.time.following)
        self.look = Look(palette=preferences.palette)
        self.filter = Pattern.parse("")
        """Which layers the main screen shows."""
        self.reference: Reference | None = None
        """The reference for loads."""
        self.mismatches: dict[tuple[object, ...], Mismatch | str] = {}
        """Comparisons of two probes, by the state of their files; or why there is none."""
        self.expert: int | None = None
        """The chosen expert of the chosen layer."""
        self.anatomy = Anatomy()
        """The probe of the open run."""
        self.seen: dict[str, None] = {}
        """Alerts that were acknowledged, oldest first; see ``key_of``."""
        self.written: list[Path] = []
        """Files exported in this session."""
        self.wanted_layer = ""
        """Name of the layer to choose once there is a run."""
        self._selected = 0
        self._rung: set[tuple[object, ...]] | None = None  # critical alerts at the last check

    @property
    def path(self) -> Path:
        """Where the runs are."""
        return self.fleet.root

    @property
    def watch(self) -> RunWatch | None:
        """The open run."""
        watch = self.fleet.open
        if watch is not self._open:  # selections of the previous run are reset
            self._open, self._selected, self.expert = watch, 0, None
            self.time.reset()
        return watch

    @property
    def version(self) -> tuple[int, int]:
        """Changes with the open run's data."""
        return self.fleet.open_version, self.reader.switches

    @property
    def selected(self) -> int:
        """Index of the chosen layer, clamped to the layers of the run."""
        run = self.watch.run if self.watch is not None else None
        if run is None:
            return self._selected
        if self.wanted_layer:
            names = [router.name for router in run.routers]
            self._selected = names.index(self.wanted_layer) if self.wanted_layer in names else 0
            self.wanted_layer = ""
        return min(self._selected, max(0, len(run.routers) - 1))

    @selected.setter
    def selected(self, index: int) -> None:
        self._selected = index

    @property
    def has_run(self) -> bool:
        """Whether there is a run with at least one step."""
        return self.watch is not None and self.watch.latest is not None

    @property
    def is_blank(self) -> bool:
        """Whether the open run was read and has no step."""
        watch = self.watch
        return watch is not None and watch.latest is None and (watch.complete or bool(watch.error))

    def shows(self, path: Path) -> bool:
        """Whether the run at ``path`` is open and has a step."""
        watch = self.watch
        if watch is None or watch.path != path:
            return False
        return watch.latest is not None or watch.complete or watch.error is not None

    @property
    def pipe_ended(self) -> bool:
        """Whether the log comes from a pipe that has ended."""
        source = self.watch.source if self.watch is not None else None
        return isinstance(source, PipedLog) and source.ended

    def how_it_watches(self) -> str:
        """Whether file events work, and why not."""
        if self.fleet.piped:
            return "the pipe has ended" if self.pipe_ended else "through a pipe"
        events = self.reader.events
        if events.mode == "events":
            return "file events"
        return f"polling: {events.reason}" if events.reason else "polling"

    def rings(self) -> bool:
        """Whether to ring the bell: there is a new critical alert."""
        watch = self.watch
        if not self.preferences.bell or watch is None or watch.diagnosis is None:
            return False
        with watch.lock:
            critical: set[tuple[object, ...]] = {
                (watch.path, e.rule, e.router_index, e.onset)
                for e in watch.diagnosis.episodes
                if e.active and e.severity is Severity.CRITICAL
            }
        known, self._rung = self._rung, critical
        return known is not None and bool(critical - known)

    def levels(
        self, key: Hashable, ratios: Sequence[float], noise: float = 0.0
    ) -> Sequence[int | None]:
        """Heat levels with hysteresis against noise; exact ones for a paused step."""
        if self.paused:
            return [shade_level(ratio) for ratio in ratios]
        return self.steady.levels((self.watch, key), ratios, noise=noise)

    @property
    def paused(self) -> bool:
        """Whether the view is paused at one step."""
        return not self.time.following and not self.time.speed

    def recent(self) -> Recent:
        """The steps whose mean load is shown; none while paused, which shows exact loads."""
        watch = self.watch
        return recent_of(watch) if watch is not None and self.time.following else Recent()

    def choose(self, file: RunFile) -> None:
        """Open a run and stay with it; the reader thread does so at its next iteration."""
        self.reader.choose(file)

    def compare_with(self, moment: Pin | None) -> None:
        """Set a step of the open run as the reference; ``None`` removes it."""
        watch = self.watch
        if moment is None or watch is None:
            self.reference = None
        else:
            self.reference = reference_of(watch.file.name, moment, watch.run)
        self.look = self.look.compared(self.reference is not None)

    def view(self, columns: int, ribbon: int, only: Container[int] | None = None) -> RunView | None:
        """The current view, or that of the pinned step; ``None`` without a run."""
        watch = self.watch
        if watch is None or watch.run is None:
            return None
        return view_of(watch, columns, ribbon, self.time.pin, only, self.time.window)
