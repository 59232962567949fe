"""All runs below a path: their states, and which of them are followed.

One run is open; the other live ones are followed and judged beside it in turn. The rest cost an
occasional ``stat``, and two short reads when they change; finished ones are judged when there is
time, newest first.
"""

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from microscope_tui.diagnosis import ANYTHING, Criteria
from microscope_tui.runlog import NoRuns, RunFile
from microscope_tui.sources import Search
from microscope_tui.watch.finished_runs import FinishedRuns
from microscope_tui.watch.reference import PinnedRun
from microscope_tui.watch.run_card import RunCard, Seen, card_of
from microscope_tui.watch.run_watch import RunWatch
from microscope_tui.watch.state import CRASHED_S, age_of
from microscope_tui.watch.summaries import DEFAULT_MEMORY
from microscope_tui.watch.verdict import verdict_on
from microscope_tui.watch.verdict_cache import VerdictCache

MOST_FOLLOWED = 8
"""Number of live runs that are judged beside the open one."""
JUDGING_S = 5.0
"""Seconds that a snapshot of the list waits for finished runs to be judged."""
_RESCAN_S = 2.0
_RESCAN_SHARE = 0.02  # share of one core: slow searches run less often
_MEMORY_BESIDE = 16  # a run beside the open one gets this fraction of the memory
_GLANCES_A_TURN = 64


class Fleet:
    """The runs below ``root``. One thread searches and reads; any thread may read the cards."""

    def __init__(
        self,
        root: Path,
        memory_bytes: int = DEFAULT_MEMORY,
        search: Search | None = None,
        criteria: Criteria = ANYTHING,
        kept: VerdictCache | None = None,
    ) -> None:
        """Find the runs below ``root``.

        Args:
            root: a folder of runs, one run folder, or one log.
            memory_bytes: bound of the history of the open run.
            search: a search of the same path that has already been used.
            criteria: by what every run is judged.
            kept: verdicts of earlier sittings by the same criteria, and where new ones go.
        """
        self.root = root
        self.lock = threading.Lock()
        self.runs: Sequence[RunFile] = ()
        """Newest first."""
        self.open: RunWatch | None = None
        self.open_version = 0
        """Incremented when the open run changes."""
        self.piped = False
        """Whether the only run comes through a pipe, without a folder."""
        self.pinned: PinnedRun | None = None
        """The run that the open one is compared with at every step."""
        self.selected: set[Path] = set()
        """Logs selected in the list."""
        self.solo = False
        """List only the selected runs."""
        self._beside: dict[Path, RunWatch] = {}
        self._glances: dict[Path, Seen] = {}
        self._finished = FinishedRuns(criteria, kept)
        self._search = search or Search(root)
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
        """Search for runs if due, or ``now``; true if the list or a run changed."""
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
        self._finished.forget_others({run.path for run in runs})
        self._choose_beside()
        return changed

    @property
    def follows_others(self) -> bool:
        """Whether live runs are followed beside the open one."""
        return bool(self._beside)

    def open_run(self, file: RunFile) -> RunWatch:
        """Follow ``file`` in full; a first sample of its history is ready on return."""
        watch = RunWatch(file, self._criteria, memory_bytes=self._memory_bytes)
        watch.open_overview()
        self._keep_verdict(self.open)
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
        """Read each followed run for a few milliseconds, the open one first; true on any change."""
        moved = self.look_around()
        for watch in [self.open, *list(self._beside.values())]:
            if watch is not None and watch.advance():
                moved = True
                self.open_version += watch is self.open
        return moved

    def look_around(self) -> bool:
        """Glance at some of the runs that changed since the last call; true if there were any."""
        if self.piped:
            return False
        stale = [run for run in self.runs if self._is_stale(run)][:_GLANCES_A_TURN]
        for run in stale:
            found, known = run.glance(), run.path in self._glances
            if found.identity is not None and found.error is None:
                self._finished.recall(run.path, found.identity)
            with self.lock:
                self._glances[run.path] = Seen(run, found, time.monotonic() if known else None)
        return bool(stale)

    def judge_finished(self) -> bool:
        """Judge a finished run for a few milliseconds; false if none is left."""
        if not self._finished.is_at_work:
            wanted = next((run for run in self.runs if self._is_queued(run)), None)
            identity = self._glances[wanted.path].ends.identity if wanted is not None else None
            if wanted is None or identity is None:
                return False
            self._finished.begin(wanted, identity)
        self._finished.work_on()
        return True

    @property
    def is_judging(self) -> bool:
        """Whether there are finished runs that are not judged yet."""
        runs = () if self.piped else self.runs
        return any(self._is_stale(run) or self._is_queued(run) for run in runs)

    def _is_queued(self, run: RunFile) -> bool:
        """Whether it is finished, and not judged in its current state."""
        seen = self._glances.get(run.path)
        if seen is None or not seen.may_be_judged or self._followed(run.path) is not None:
            return False
        return self._finished.is_wanted(run.path, seen.ends.identity)

    def _keep_verdict(self, watch: RunWatch | None) -> None:
        """Reuse the verdict of a run that was followed to its end."""
        seen = self._glances.get(watch.path) if watch is not None else None
        if watch is None or seen is None or (identity := seen.ends.identity) is None:
            return
        at_end = watch.complete and not watch.unread and watch.error is None
        if at_end and (*watch.file.inode, watch.source.size) == identity[:3]:
            self._finished.keep(watch.path, identity, verdict_on(watch))

    def cards(self, now: float | None = None) -> list[RunCard]:
        """Every run as of the last glance, newest first."""
        with self.lock:
            runs, glances = self.runs, dict(self._glances)
            followed = dict(self._beside)
            if self.open is not None:
                followed[self.open.path] = self.open
                runs = [self.open.file] if self.piped else runs  # its header came with the log
        return [self._card(run, glances.get(run.path), followed.get(run.path), now) for run in runs]

    def _card(
        self, run: RunFile, seen: Seen | None, watch: RunWatch | None, now: float | None
    ) -> RunCard:
        identity = seen.ends.identity if seen is not None else None
        verdict = self._finished.verdict(run.path, identity)
        return replace(
            card_of(run, seen, watch, verdict, now),
            judged=watch.judged if watch is not None else self._finished.progress(run.path),
            queued=self._is_queued(run),
            open=watch is not None and watch is self.open,
            pinned=self.pinned is not None and self.pinned.file.path == run.path,
            selected=run.path in self.selected,
        )

    def _is_stale(self, run: RunFile) -> bool:
        seen = self._glances.get(run.path)
        return seen is None or seen.file != run

    def _found(self) -> Sequence[RunFile]:
        """The current runs; the previous ones while their folder cannot be listed."""
        try:
            if runs := self._search.runs():
                return runs
            if self.root.is_dir():
                os.scandir(self.root).close()
        except (NoRuns, OSError):
            return self.runs
        return []

    def _choose_beside(self) -> None:
        """Follow the live runs that are not open; release those that ended long ago."""
        live: list[RunFile] = []
        for run in self.runs[: 4 * MOST_FOLLOWED]:
            seen = self._glances.get(run.path)
            opened = self.open is not None and self.open.path == run.path
            if opened or seen is None or seen.ends.end is not None or seen.ends.last is None:
                continue
            age = age_of(run.modified, changed_at=seen.changed_at)
            if age is not None and age < CRASHED_S and len(live) < MOST_FOLLOWED:
                live.append(run)
        memory = self._memory_bytes // _MEMORY_BESIDE
        chosen = {
            run.path: self._beside.get(run.path)
            or RunWatch(run, self._criteria, memory_bytes=memory)
            for run in live
        }
        for path, watch in self._beside.items():
            if path not in chosen:
                self._keep_verdict(watch)
        with self.lock:
            self._beside = chosen

    def _find_renamed(self, runs: Sequence[RunFile]) -> bool:
        """The open log was moved: continue at the new path of the same file."""
        assert self.open is not None
        for run in runs:
            if run.inode != (0, 0) and run.inode == self.open.file.inode:
                self.open.relocate(run)
                return True
        return False

    def may_switch(self, following: bool) -> bool:
        """Whether a newer run may be opened automatically: nothing is lost by leaving this one."""
        if self.open is None or self.open.latest is None:
            return True
        return self.open.complete and following and self.open.state()[0].ended
