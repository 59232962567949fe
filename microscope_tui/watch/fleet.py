"""All runs below a path: their cards, and which of them are followed.

One run is open; the other live ones are followed and judged beside it in turn. The rest cost an
occasional ``stat``, and two short reads when they change; finished ones are judged when there is
time, newest first.
"""

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from microscope_tui.diagnosis import ANYTHING, Criteria
from microscope_tui.runlog import Glance, Identity, NoRuns, RunFile, safe_text
from microscope_tui.sources import Search
from microscope_tui.watch.reference import PinnedRun
from microscope_tui.watch.run_watch import RunWatch
from microscope_tui.watch.scan import DEFAULT_MEMORY
from microscope_tui.watch.state import CRASHED_S, STALE_S, RunState, age_of, state_of
from microscope_tui.watch.verdict import Trouble, Verdict, VerdictCache, verdict_on


@dataclass(frozen=True, slots=True)
class RunCard:
    """One run in the list."""

    file: RunFile
    state: RunState
    age_s: float | None
    step: int
    planned_steps: int | None
    loss: float | None
    verdict: Verdict | None
    """Its verdict; ``None`` if not known yet."""
    error: str | None
    end_reason: str | None = None
    """Why the run ended, if logged."""
    judged: float = 0.0
    """Share of the log that the diagnosis has seen."""
    queued: bool = False
    """Whether it will be judged in the background."""
    open: bool = False
    pinned: bool = False
    """Whether the open run is compared with it."""
    selected: bool = False

    @property
    def findings(self) -> Sequence[Trouble] | None:
        """Active alerts, worst first; ``None`` where the run is not judged."""
        return None if self.verdict is None else [t for t in self.verdict.troubles if t.active]

    @property
    def recovered(self) -> Sequence[Trouble]:
        """Recovered alerts."""
        return [] if self.verdict is None else [t for t in self.verdict.troubles if not t.active]


@dataclass(frozen=True, slots=True)
class Seen:
    """The result of a glance, and when the file was seen to change (``None``: not yet)."""

    file: RunFile
    ends: Glance
    changed_at: float | None

    @property
    def may_be_judged(self) -> bool:
        """Whether it can be read and has ended."""
        if self.ends.error or self.ends.identity is None:
            return False
        age = age_of(self.file.modified, changed_at=self.changed_at)
        if self.file.is_read_whole:  # while it grows it would be read again and again
            return self.file.origin is None or (age is not None and age >= STALE_S)
        over = self.ends.end is not None or (age is not None and age >= CRASHED_S)
        return over and self.ends.last is not None


def card_of(
    run: RunFile,
    seen: Seen | None,
    watch: RunWatch | None,
    verdict: Verdict | None,
    now: float | None,
) -> RunCard:
    """The card of ``run``.

    Args:
        seen: the last glance at it.
        watch: the run where it is followed.
        verdict: what is known of it where it is not.
        now: the time, in Unix seconds; by default that of the clock.
    """
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
    if run.is_read_whole and watch is None:
        state = RunState.ARCHIVED  # an archive's end is unknown before it is unpacked
    if verdict is not None and plan is not None and verdict.last_step:
        plan = replace(plan, planned_steps=verdict.planned_steps)  # of all run records the newest
    error = found.error or (watch.error if watch else None)
    if watch is not None:
        with watch.lock:
            verdict = verdict_on(watch) if watch.diagnosis is not None else None
            if watch.latest is not None and (watch.complete or last is None):
                # The watch has read more than a glance, and the header is the same.
                last, end, plan = watch.latest.record, watch.shown.end, watch.run
                state, age = watch.state(now)
    if error and last is None:
        state = RunState.ERROR
    elif seen is None and watch is None:
        state = RunState.UNKNOWN  # not read yet
    return RunCard(
        file=run,
        state=state,
        age_s=age,
        step=last.step if last else verdict.last_step if verdict else 0,
        planned_steps=plan.planned_steps if plan else None,
        loss=last.loss if last else None,
        verdict=verdict,
        error=error,
        end_reason=end.reason if end else None,
    )


_MEMORY_BYTES = 1 << 20
_SLICE_BYTES = 1 << 18


class FinishedRuns:
    """The verdicts on finished runs."""

    def __init__(self, criteria: Criteria, cache: VerdictCache | None = None) -> None:
        self._criteria = criteria
        self._cache = cache
        self._verdicts: dict[Path, tuple[Identity, Verdict]] = {}
        self._at_work: tuple[RunWatch, Identity] | None = None

    def verdict(self, path: Path, identity: Identity | None) -> Verdict | None:
        """The verdict on the log at ``path`` in this state, if there is one."""
        known = self._verdicts.get(path)
        return known[1] if known is not None and known[0] == identity else None

    def progress(self, path: Path) -> float:
        """Judged share of the log at ``path``, if it is being judged."""
        at_work = self._at_work
        return at_work[0].judged if at_work is not None and at_work[0].path == path else 0.0

    def recall(self, path: Path, identity: Identity) -> None:
        """Load a cached verdict, if there is one."""
        kept = self._cache.load(identity) if self._cache is not None else None
        if kept is not None:
            self._verdicts[path] = identity, kept

    def keep(self, path: Path, identity: Identity, verdict: Verdict) -> None:
        """Store the verdict on a log in this state."""
        self._verdicts[path] = identity, verdict
        if self._cache is not None:
            self._cache.keep(identity, verdict)

    def forget_others(self, paths: set[Path]) -> None:
        """Forget runs that are gone."""
        for gone in self._verdicts.keys() - paths:
            del self._verdicts[gone]
        if self._at_work is not None and self._at_work[0].path not in paths:
            self._at_work = None

    @property
    def is_at_work(self) -> bool:
        """Whether a run is being judged."""
        return self._at_work is not None

    def begin(self, run: RunFile, identity: Identity) -> None:
        """Judge ``run`` next, which is in this state."""
        watch = RunWatch(run, self._criteria, patient=True, memory_bytes=_MEMORY_BYTES)
        self._at_work = watch, identity

    def work_on(self) -> None:
        """Continue judging for a few milliseconds."""
        if self._at_work is None:
            return
        watch, identity = self._at_work
        try:
            watch.advance(_SLICE_BYTES)
            if watch.unread:
                return
            self._conclude(watch, identity)
        except Exception as error:  # one malformed log must not stop the reading of all others
            problem = safe_text(f"cannot be judged: {error!r}", 200)
            self._verdicts[watch.path] = identity, Verdict((), problem, "", 0, None)
        self._at_work = None

    def _conclude(self, watch: RunWatch, identity: Identity) -> None:
        """A log that failed or changed meanwhile is judged again: its verdict is not cached."""
        self._verdicts[watch.path] = identity, verdict_on(watch)
        with suppress(OSError):
            if not watch.error and not watch.source.deleted and watch.file.identity() == identity:
                self.keep(watch.path, *self._verdicts[watch.path])


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
        return self._finished.verdict(run.path, seen.ends.identity) is None

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
