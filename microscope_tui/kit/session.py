"""Shared state of all screens: the runs, the open one, the step, and the view settings."""

import asyncio
import os
import shlex
from collections.abc import Container, Hashable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec
from msgspec.structs import replace

from microscope_tui.diagnosis import Severity
from microscope_tui.draw.glyphs import Glyphs, shade_level
from microscope_tui.draw.heat import Look, Palette
from microscope_tui.draw.steady import SteadyLevels
from microscope_tui.draw.time_line import Axis
from microscope_tui.kit.reader import Reader
from microscope_tui.kit.time_cursor import TimeCursor
from microscope_tui.runlog import ROUTING_NAME, PipedLog, RunFile, RunRecord, StepEntry, safe_text
from microscope_tui.sources import SourceRequest
from microscope_tui.watch import (
    Fleet,
    NothingToCompare,
    Pin,
    PinnedRun,
    Reading,
    Reference,
    RunView,
    RunWatch,
    aligned,
    recent_of,
    reference_of,
    view_of,
)
from microscope_tui.watch.cost import OF_HEADER, CostRequest
from microscope_tui.watch.view import Recent

if TYPE_CHECKING:  # imported while the log is read
    from microscope_tui.kit.palette import Shades


class Extension(Protocol):
    """What an extension keeps in the session."""

    def close(self) -> None:
        """The session ends."""


class Preferences(msgspec.Struct, frozen=True):
    """Settings of the command line and the config file; by default no bell and no saved view."""

    palette: Palette = Palette.DIVERGING
    interval_s: float = 0.5
    """Seconds between two redraws of a live run."""
    bell: bool = False
    """Ring at a new critical alert."""
    remember: bool = False
    """Keep the view settings of the folder for the next session."""
    keymap: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Custom keys, by the id of their binding."""
    cost: CostRequest = OF_HEADER
    """Which ranks, and what a token costs, for the cost of the load."""
    theme: Literal["dark", "light"] = "dark"


DEFAULT = Preferences()


class PictureRequest(msgspec.Struct, frozen=True):
    """What ``snapshot`` draws: a screen, its size, the step and the selection."""

    screen: str = "main"
    """Name as in ``SCREENS``."""
    columns: int = 120
    """Cells of the width."""
    rows: int = 40
    """Lines of the height."""
    step: int | None = None
    """The last logged step at or before this one; the newest by default."""
    played: Sequence[int] = ()
    """The steps of an animation."""
    layer: str = ""
    """Name of the chosen layer; the worst one by default."""
    expert: int | None = None
    """The chosen expert; none by default."""
    token: int | None = None
    """The token at the cursor on the screen of the tokens; the first by default."""
    numbers: Sequence[str] = ()
    """Names of up to two numbers to draw on the screen of the course."""
    against: RunFile | None = None
    """The run to compare with."""
    framed: bool = False
    """With the frame of a window around it."""
    preferences: Preferences = DEFAULT


class Session:
    """What all screens share: the runs, the shown step, the selections and the view settings."""

    def __init__(self, fleet: Fleet, glyphs: Glyphs, preferences: Preferences = DEFAULT) -> None:
        self.fleet = fleet
        self.glyphs = glyphs
        self.preferences = preferences
        self.steady = SteadyLevels()
        self.axis = Axis.STEP
        self.smoothing = 0.0
        """Weight; 0 for none."""
        self.in_tmux = "TMUX" in os.environ
        self._open: RunWatch | None = None
        self.time = TimeCursor(lambda: self.watch)
        self.reader = Reader(fleet, lambda: self.time.following)
        self.look = Look(palette=preferences.palette)
        self.filter = ""
        self.reference: Reference | None = None
        self.pin_problem = ""
        """Why the pinned run could not be moved to the shown step."""
        self.extensions: dict[str, Extension] = {}
        """What an extension remembers of this session, by its name."""
        self.expert: int | None = None
        self.numbers: tuple[str, ...] = ()
        """What the screen of the course shows: up to two numbers; the overview by default."""
        self.readings: dict[tuple[object, ...], Reading] = {}
        """Numbers read from the log, by the log and their names."""
        self.seen: dict[str, None] = {}
        """Alerts that were acknowledged, oldest first; see ``key_of``."""
        self.written: list[Path] = []
        self.maps: tuple[str, ...] = ()
        """Confirmed keys of other tools, as given with ``--map``."""
        self.top_k: int | None = None
        """The k of runs that do not contain it."""
        self.wanted_layer = ""
        """The layer to choose once there is a run."""
        self._selected = 0
        self._chosen = False
        self._looked: tuple[tuple[object, ...], bool] = ((), False)
        self._rung: set[tuple[object, ...]] | None = None  # critical alerts at the last check

    @property
    def watch(self) -> RunWatch | None:
        """The open run; ``None`` before one was found. Another run resets the selections."""
        watch = self.fleet.open
        if watch is not self._open:  # selections of the previous run are reset
            self._open, self._selected, self.expert = watch, 0, None
            self._chosen = False
            self.numbers = ()
            self.readings = {}
            self.time.reset()
        return watch

    @cached_property
    def shades(self) -> "Shades":
        """The log is already being read when Rich is imported."""
        if self.preferences.theme == "light":
            from microscope_tui.kit.light import LIGHT

            return LIGHT
        from microscope_tui.kit.palette import DARK

        return DARK

    async def has_probe(self) -> bool:
        """Looked up once for each version of the run."""
        watch = self.watch
        wanted = (watch, self.fleet.open_version)
        if self._looked[0] != wanted and watch is not None:
            there = watch.path.with_name(ROUTING_NAME)
            self._looked = wanted, await asyncio.to_thread(os.path.isfile, there)
        return self._looked[1]

    @property
    def _proposed(self) -> SourceRequest | None:
        return getattr(self.watch.source, "proposed", None) if self.watch is not None else None

    @property
    def lacks_top_k(self) -> bool:
        """For the open run, or for the proposal."""
        if self._proposed is not None:
            return not self._proposed.top_k
        known = self.run is None or all(router.top_k for router in self.run.routers)
        foreign = self.watch is not None and self.watch.file.foreign
        return foreign and not (known or self.maps or self.top_k)

    def confirm_keys(self, top_k: int = 0) -> str:
        """Read unknown keys as proposed, with this k, or forget both; returns what was done."""
        watch, request, proposed = self.watch, self.fleet.request, self._proposed
        rules = proposed.confirmed if proposed is not None else ()
        given = top_k or None
        if rules and not top_k:
            given = request.top_k
        if watch is None or not (rules or given or self.maps or self.top_k):
            return "nothing is proposed for the keys of this run: --map names them"
        self.maps, self.top_k = tuple(rule.written for rule in rules), given
        self.reader.choose(watch.file, replace(request, confirmed=rules, confirmed_top_k=given))
        if not (rules or given):
            return "the confirmed keys are forgotten; m confirms them again"
        kept = "; remembered for this folder" if self.preferences.remember else ""
        return f"confirmed: k = {given or '?'} {shlex.join(self.maps)}{kept}; m forgets it"

    def close(self) -> None:
        """End the reader, and what it started."""
        for extension in self.extensions.values():
            extension.close()
        self.reader.stop()

    @property
    def run(self) -> RunRecord | None:
        """The header of the open run; ``None`` before one was read."""
        return self.watch.run if self.watch is not None else None

    @property
    def selected(self) -> int:
        """Index of the chosen layer, clamped to the layers of the run."""
        run = self.run
        if run is None:
            return self._selected
        if self.wanted_layer:
            names = [router.name for router in run.routers]
            self._selected = 0
            if self.wanted_layer in names:
                self._selected = names.index(self.wanted_layer)
            self.wanted_layer = ""
            self._chosen = True
        return min(self._selected, max(0, len(run.routers) - 1))

    @selected.setter
    def selected(self, index: int) -> None:
        self._selected = index
        self._chosen = True

    def look_at_worst(self, view: RunView) -> None:
        """Until a key selects a layer."""
        if not self._chosen and view.worst is not None:
            self._selected = max(0, view.worst[0].worst.router_index)

    @property
    def shown_entry(self) -> StepEntry | None:
        """The step that the screens show; ``None`` before the first."""
        watch = self.watch
        if self.time.pin is not None:
            return self.time.pin.latest
        return watch.latest if watch is not None else None

    @property
    def has_run(self) -> bool:
        """Whether there is a step to show."""
        return self.watch is not None and self.watch.latest is not None

    @property
    def is_blank(self) -> bool:
        """Whether the open run was read and has no step."""
        watch = self.watch
        return watch is not None and watch.latest is None and (watch.complete or bool(watch.error))

    @property
    def pipe_ended(self) -> bool:
        """Whether the run came through a pipe that its writer closed."""
        source = self.watch.source if self.watch is not None else None
        return isinstance(source, PipedLog) and source.ended

    def moment(self, view: RunView) -> str:
        """What is shown, in words: the state while following, else that it is paused or played
        back.
        """
        time = self.time
        if time.following and self.pipe_ended and not view.state.ended:
            return "pipe ended"
        if time.following:
            return view.life.word
        how = f"PLAYING {time.speed}x" if time.speed else "PAUSED"
        behind = f", now {view.newest_step:,}" if view.newest_step > view.step else ""
        return f"{how}{behind}"

    def unless_live(self, view: RunView) -> str:
        """The same, with a blank behind it; empty while following."""
        return "" if self.time.following else f"{self.moment(view)} "

    def has_new_critical(self) -> bool:
        """Whether to ring: a critical alert that was not there at the last call, and never at the
        first.
        """
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

    def toggle_seen(self, marks: set[str]) -> str:
        """Mark alerts as seen, or as not seen if all were; returns which."""
        if marks <= self.seen.keys():
            self.seen = {key: None for key in self.seen if key not in marks}
            return "not seen"
        self.seen = self.seen | dict.fromkeys(sorted(marks))
        return "seen"

    def levels(
        self, key: Hashable, ratios: Sequence[float], per_cell: int = 1, noise: float = 0.0
    ) -> Sequence[int | None]:
        """Steady ones; exact ones for a paused step."""
        if not self.time.following and not self.time.speed:
            return [shade_level(ratio, per_cell) for ratio in ratios]
        return self.steady.levels((self.watch, key), ratios, per_cell, noise)

    def recent(self) -> Recent:
        """The steps whose mean load is shown; none while paused."""
        watch = self.watch
        return recent_of(watch) if watch is not None and self.time.following else Recent()

    def compare_with(self, moment: Pin | None) -> None:
        """Compare with a moment of the open run; ``None`` removes the reference."""
        watch = self.watch
        if moment is None or watch is None:
            self.reference = None
        else:
            self.reference = reference_of(watch.file.name, moment, watch.run)
        self.look = self.look.compared(self.reference is not None)

    @property
    def pinned(self) -> PinnedRun | None:
        """``None`` once the reference was replaced or removed."""
        fleet, reference = self.fleet, self.reference
        name = fleet.pinned.file.name if fleet.pinned is not None else None
        if reference is None or reference.run != name:
            fleet.pinned = None
        return fleet.pinned

    async def pin_run(self, file: RunFile) -> str:
        """Compare with ``file`` at the shown step; returns the problem, if any."""
        pinned = self.fleet.comparable(file)
        found = await asyncio.to_thread(_moment, pinned, self.time.shown_step)
        if isinstance(found, str):
            return found
        self._refer_to(found)
        self.fleet.pinned = pinned
        self.look = self.look.compared(True)
        return ""

    async def move_pinned(self, pinned: PinnedRun, step: int) -> str:
        """Compare with another step of the pinned run; returns a problem that is new."""
        found = await asyncio.to_thread(_moment, pinned, step)
        if self.pinned is not pinned:
            return ""
        if not isinstance(found, str):
            self._refer_to(found)
            return ""
        known, self.pin_problem = self.pin_problem, found
        return found if found != known else ""

    def _refer_to(self, found: Reference) -> None:
        self.pin_problem = ""
        self.reference = aligned(found, self.run) if self.run is not None else found

    def view(self, columns: int, ribbon: int, only: Container[int] | None = None) -> RunView | None:
        """The frame at the pinned step, if any, else at the newest; ``None`` without a run.

        ``columns``, ``ribbon``, ``only``: as in ``view_of``.
        """
        watch = self.watch
        if watch is None or watch.run is None:
            return None
        return view_of(watch, columns, ribbon, self.time.pin, only, self.time.window)

    def glance(self) -> RunView | None:
        """A frame without curves, for a key that needs only the numbers."""
        return self.view(1, 1, range(0))


def _moment(pinned: PinnedRun, step: int) -> Reference | str:
    try:
        return pinned.at(step)
    except NothingToCompare as problem:
        return str(problem)
    except OSError as error:
        return safe_text(f"{pinned.file.name}: {error.strerror or error}", 200)
