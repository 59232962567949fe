"""All runs below a path: which there are, how each is doing, and which of them are followed.

One run is open; the other live ones are followed and judged beside it, each in its turn. The rest
cost a ``stat`` now and then, and two short reads when they changed.
"""

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from microscope_tui.diagnosis.criteria import Criteria
from microscope_tui.diagnosis.engine import ANYTHING
from microscope_tui.diagnosis.episodes import Finding
from microscope_tui.diagnosis.reading import Severity
from microscope_tui.runlog.compressed import ARCHIVE_SUFFIXES
from microscope_tui.runlog.discover import KnownLogs, NoRuns, RunFile, find_runs
from microscope_tui.runlog.glance import Glance, glance
from microscope_tui.watch.reference import PinnedRun
from microscope_tui.watch.run_watch import RunWatch
from microscope_tui.watch.state import ENDED, age_of, state_of
from microscope_tui.watch.summaries import DEFAULT_MEMORY

MOST_FOLLOWED = 8
"""Live runs that are judged beside the open one."""
_RESCAN_S = 2.0
_RESCAN_SHARE = 0.02  # of one core: a search that takes long is made less often
_MEMORY_BESIDE = 16  # a run beside the open one gets this fraction of the memory
_GLANCES_A_TURN = 64


@dataclass(frozen=True, slots=True)
class RunCard:
    """One run in the list."""

    file: RunFile
    state: str
    age_s: float | None
    step: int
    planned_steps: int | None
    loss: float | None
    findings: Sequence[Finding] | None
    """Active alerts; ``None`` where the run is not followed."""
    judged: float
    """Share of the log that the diagnosis has seen."""
    error: str | None
    open: bool
    end_reason: str | None = None
    """Why the run ended, where its log says so."""
    pinned: bool = False
    """The open run is compared with it."""
    selected: bool = False


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a glance showed, and when the file was seen to change (``None``: not yet)."""

    file: RunFile
    ends: Glance
    changed_at: float | None


class Fleet:
    """The runs below ``root``. One thread searches and reads; any thread may look at the cards."""

    def __init__(
        self,
        root: Path,
        memory_bytes: int = DEFAULT_MEMORY,
        known: KnownLogs | None = None,
        criteria: Criteria = ANYTHING,
    ) -> None:
        """Look for the runs below ``root``.

        Args:
            root: a folder of runs, one run folder, or one log.
            memory_bytes: bound of the history of the open run.
            known: what a search of the same folder found a moment ago.
            criteria: by what every run is judged.
        """
        self.root = root
        self.lock = threading.Lock()
        self.runs: Sequence[RunFile] = ()
        """Newest first."""
        self.open: RunWatch | None = None
        self.open_version = 0
        """Grows whenever the open run has something new."""
        self.piped = False
        """The one run comes through a pipe; there is no folder."""
        self.pinned: PinnedRun | None = None
        """The run that the open one is compared with at every step."""
        self.selected: set[Path] = set()
        """Logs that somebody picked out of the list."""
        self.solo = False
        """Only these are to be listed."""
        self._beside: dict[Path, RunWatch] = {}
        self._glances: dict[Path, _Seen] = {}
        self._known = known or KnownLogs()
        self._criteria = criteria
        self._memory_bytes = memory_bytes
        self._next_search = 0.0

    @classmethod
    def of_one(cls, watch: RunWatch) -> "Fleet":
        """A single run that comes from no folder: a pipe."""
        fleet = cls(Path(watch.file.name))
        fleet.open, fleet.runs, fleet.piped = watch, [watch.file], True
        return fleet

    def search(self, *, now: bool = False) -> bool:
        """Look for runs if it is time to, or ``now``; true if the list or a run changed."""
        started = time.monotonic()
        if self.piped or (not now and started < self._next_search):
            return False
        runs = self._found()
        took = time.monotonic() - started
        self._next_search = started + max(_RESCAN_S, took / _RESCAN_SHARE)
        changed = list(runs) != list(self.runs)
        if self.open is not None and self.open.source.deleted:
            changed |= self._find_renamed(runs)
        with self.lock:
            self.runs = runs
            for gone in self._glances.keys() - {run.path for run in runs}:
                del self._glances[gone]
        self._choose_beside()
        return changed

    @property
    def follows_others(self) -> bool:
        """Live runs are followed beside the open one."""
        return bool(self._beside)

    def open_run(self, file: RunFile) -> RunWatch:
        """Follow ``file`` in full; the first picture of its history is there on return."""
        watch = RunWatch(file, self._criteria, memory_bytes=self._memory_bytes)
        watch.open_overview()
        with self.lock:
            self.open = watch
            self._beside.pop(file.path, None)
        return watch

    def comparable(self, file: RunFile) -> PinnedRun:
        """A run to compare the open one with; read again only where it is not followed anyway."""
        return PinnedRun(file, self._followed)

    def _followed(self, path: Path) -> RunWatch | None:
        with self.lock:
            if self.open is not None and self.open.path == path:
                return self.open
            return self._beside.get(path)

    def turn(self) -> bool:
        """Give every followed run a few milliseconds, the open one first; true if any moved on."""
        moved = self.look_around()
        for watch in [self.open, *list(self._beside.values())]:
            if watch is not None and watch.advance():
                moved = True
                self.open_version += watch is self.open
        return moved

    def look_around(self) -> bool:
        """Glance at some of the runs that changed since the last look; true if there were any."""
        if self.piped:
            return False
        stale = [run for run in self.runs if self._is_stale(run)][:_GLANCES_A_TURN]
        for run in stale:
            found, known = glance(run.path), run.path in self._glances
            with self.lock:
                self._glances[run.path] = _Seen(run, found, time.monotonic() if known else None)
        return bool(stale)

    def cards(self, now: float | None = None) -> list[RunCard]:
        """Every run as it was at the last look, newest first."""
        with self.lock:
            runs, glances = self.runs, dict(self._glances)
            followed = dict(self._beside)
            if self.open is not None:
                followed[self.open.path] = self.open
                runs = [self.open.file] if self.piped else runs  # its header came with the log
        return [self._card(run, glances.get(run.path), followed.get(run.path), now) for run in runs]

    def _card(
        self,
        run: RunFile,
        seen: "_Seen | None",
        watch: RunWatch | None,
        now: float | None,
    ) -> RunCard:
        found = seen.ends if seen else Glance()
        last, end, plan = found.last, found.end, found.run
        age = age_of(run.modified, now, seen.changed_at if seen else None)
        state = state_of(
            age,
            deleted=False,
            has_steps=last is not None,
            end=end,
            step_times_s=[found.step_time_s] if found.step_time_s else [],
        )
        if run.path.suffix in ARCHIVE_SUFFIXES and watch is None:
            state = "archived"  # its end is not known before all of it was unpacked
        findings = None
        error = found.error or (watch.error if watch else None)
        if watch is not None:
            with watch.lock:
                if watch.diagnosis is not None:
                    found_now = watch.diagnosis.findings()
                    findings = [f for f in found_now if f.active and f.severity > Severity.INFO]
                if watch.latest is not None and (watch.complete or last is None):
                    # It knows more than a glance, and the header says the same.
                    last, end, plan = watch.latest.record, watch.shown.end, watch.run
                    state, age = watch.state(now)
        if error and last is None:
            state = "error"
        elif seen is None and watch is None:
            state = ""  # nobody has looked yet
        return RunCard(
            file=run,
            state=state,
            age_s=age,
            step=last.step if last else 0,
            planned_steps=plan.planned_steps if plan else None,
            loss=last.loss if last else None,
            findings=findings,
            judged=watch.judged if watch is not None else 0.0,
            error=error,
            open=watch is not None and watch is self.open,
            end_reason=end.reason if end else None,
            pinned=self.pinned is not None and self.pinned.file.path == run.path,
            selected=run.path in self.selected,
        )

    def _is_stale(self, run: RunFile) -> bool:
        seen = self._glances.get(run.path)
        return seen is None or seen.file != run

    def _found(self) -> Sequence[RunFile]:
        """The runs there are; the ones there were, while their folder cannot be listed."""
        try:
            if runs := find_runs(self.root, self._known):
                return runs
            if self.root.is_dir():
                os.scandir(self.root).close()
        except (NoRuns, OSError):
            return self.runs
        return []

    def _choose_beside(self) -> None:
        """Follow the live runs that are not open; let go of those that ended long ago."""
        live: list[RunFile] = []
        for run in self.runs[: 4 * MOST_FOLLOWED]:
            seen = self._glances.get(run.path)
            opened = self.open is not None and self.open.path == run.path
            if opened or seen is None or seen.ends.end is not None or seen.ends.last is None:
                continue
            age = age_of(run.modified, changed_at=seen.changed_at)
            if age is not None and age < 600 and len(live) < MOST_FOLLOWED:
                live.append(run)
        memory = self._memory_bytes // _MEMORY_BESIDE
        chosen = {
            run.path: self._beside.get(run.path)
            or RunWatch(run, self._criteria, memory_bytes=memory)
            for run in live
        }
        with self.lock:
            self._beside = chosen

    def _find_renamed(self, runs: Sequence[RunFile]) -> bool:
        """The open log is gone from its place: go on where the same file stands now."""
        assert self.open is not None
        for run in runs:
            if run.inode != (0, 0) and run.inode == self.open.file.inode:
                self.open.relocate(run)
                return True
        return False

    def may_switch(self, following: bool) -> bool:
        """A newer run may be opened unasked: nothing is lost by leaving the present one."""
        if self.open is None or self.open.latest is None:
            return True
        return self.open.complete and following and self.open.state()[0] in ENDED
