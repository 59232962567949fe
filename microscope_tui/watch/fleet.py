"""All runs below a path: their cards, and which of them are followed.

One run is open; the other live ones are followed beside it in turn. The rest cost an occasional
``stat``, and two short reads when they change; finished ones are judged when there is time.
"""

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec.structs import replace

from microscope_tui.diagnosis import ANYTHING, Criteria, Severity
from microscope_tui.runlog import Glance, NoRuns, RunFile, Stamp, safe_text
from microscope_tui.sources import Search, SourceRequest
from microscope_tui.watch.reference import PinnedRun
from microscope_tui.watch.run_watch import SECOND_BYTES, RunWatch
from microscope_tui.watch.scan import DEFAULT_MEMORY
from microscope_tui.watch.state import CRASHED_S, STALE_S, Life, RunState, age_of, life_of, state_of
from microscope_tui.watch.verdict import Trouble, Verdict, VerdictCache, verdict_on


class RunCard(msgspec.Struct, frozen=True):
    """One run in the list. ``None`` where it is not known yet, or not logged."""

    file: RunFile
    life: Life
    age_s: float | None
    """Seconds since the log last changed."""
    step: int
    """The last step that was read; 0 before the first."""
    planned_steps: int | None
    """``None`` also where the run has gone beyond its plan."""
    loss: float | None
    """Of the last step."""
    verdict: Verdict | None
    """``None`` if not known yet."""
    error: str | None
    """Why the log cannot be read, in words."""
    end_reason: str | None = None
    """Why the run ended, if logged."""
    judged: float = 0.0
    """Share of the log that the diagnosis has seen."""
    queued: bool = False
    """Whether it has ended and will be judged when there is time."""
    open: bool = False
    """Whether it is the run of the main screen."""
    pinned: bool = False
    """Whether the open run is compared with it."""
    selected: bool = False
    """Whether the user selected it in the list."""

    @property
    def findings(self) -> Sequence[Trouble] | None:
        """Active alerts, worst first; ``None`` where the run is not judged."""
        if self.verdict is None:
            return None
        return [trouble for trouble in self.verdict.troubles if trouble.active]

    @property
    def recovered(self) -> Sequence[Trouble]:
        """Alerts that are over, worst first; empty where the run is not judged."""
        if self.verdict is None:
            return []
        return [trouble for trouble in self.verdict.troubles if not trouble.active]


class Seen(msgspec.Struct, frozen=True):
    """The result of a glance, and when the file was seen to change (``None``: not yet)."""

    file: RunFile
    ends: Glance
    """What the first and the last lines of the log gave."""
    changed_at: float | None
    """By the monotonic clock."""

    @property
    def may_be_judged(self) -> bool:
        """Whether it can be read and has ended."""
        if self.ends.identity is None:
            return False  # it cannot be read
        age_s = age_of(self.file.modified, changed_at=self.changed_at)
        if self.file.is_read_whole:  # while it grows it would be read again and again
            return not self.file.foreign or age_s >= STALE_S
        over = self.ends.end is not None or age_s >= CRASHED_S
        return over and self.ends.last is not None


def _glanced(seen: Seen, verdict: Verdict | None) -> RunCard:
    """What the ends of a log show; ``verdict``: a kept one on the log in this state."""
    file, found = seen.file, seen.ends
    age = age_of(file.modified, changed_at=seen.changed_at)
    has_steps = found.last is not None
    times = list(filter(None, [found.step_time_s]))
    state = state_of(age, deleted=False, has_steps=has_steps, end=found.end, step_times_s=times)
    planned = loss = reason = None
    step = 0
    if found.run is not None:
        planned = found.run.planned_steps
        if verdict is not None and verdict.last_step:
            planned = verdict.planned_steps  # of the newest run record
    if found.last is not None:
        step, loss = found.last.step, found.last.loss
    if found.end is not None:
        reason = found.end.reason
    life = life_of(state, age, times, 0.0, step, planned)
    return RunCard(file, life, age, step, planned, loss, verdict, found.error, end_reason=reason)


def _followed(watch: RunWatch, card: RunCard, *, has_steps: bool) -> RunCard:
    """``card`` with what following the run shows.

    ``has_steps``: the glance saw one, which is the newer one until all of the log has been read.
    """
    with watch.lock:
        verdict = None
        if watch.diagnosis is not None:
            verdict = verdict_on(watch)
        card = replace(card, verdict=verdict, error=watch.error)
        if watch.latest is None or (has_steps and not watch.complete):
            return card
        reason = None
        if watch.shown.end is not None:
            reason = watch.shown.end.reason
        return replace(
            card,
            life=watch.life(),
            age_s=watch.state()[1],
            step=watch.last_step,
            planned_steps=watch.planned_steps,
            loss=watch.latest.record.loss,
            end_reason=reason,
        )


def _is_critical(watch: RunWatch) -> bool:
    with watch.lock:
        return any(e.active and e.severity is Severity.CRITICAL for e in watch.episodes)


MOST_FOLLOWED = 8
"""Number of live runs that are judged beside the open one."""
_RESCAN_S = 2.0
_RESCAN_SHARE = 0.02  # share of one core: slow searches run less often
_MEMORY_BESIDE = 16  # a run beside the open one gets this fraction of the memory
_GLANCES_A_TURN = 64
VERDICT_MEMORY = 1 << 20
"""Bytes of the history where only the verdict is wanted."""
_SLICE_BYTES = 1 << 18  # of a finished run while it is judged


class Fleet:
    """The runs below ``root``.

    One thread searches, opens and reads (``search``, ``open_run``, ``turn``, ``judge_finished``).
    Any thread may call ``cards``.
    """

    def __init__(
        self,
        root: Path,
        memory_bytes: int = DEFAULT_MEMORY,
        search: Search | None = None,
        criteria: Criteria = ANYTHING,
        kept: VerdictCache | None = None,
    ) -> None:
        """Find the runs below ``root``: a folder of runs, one run folder, or one log.

        Args:
            memory_bytes: bound of the history of the open run.
            search: a search of the same path that was used already.
            criteria: by what every run is judged.
            kept: verdicts of earlier sessions by the same criteria, and where new ones go.
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
        self.critical: dict[Path, str] = {}
        """Names of the runs that became critical beside the open one, until the list shows them."""
        self._told: set[Path] = set()
        """Critical runs that the user knows of."""
        self._beside: dict[Path, RunWatch] = {}
        self._glances: dict[Path, Seen] = {}
        self._kept = kept
        self._verdicts: dict[Path, tuple[Stamp, Verdict]] = {}
        """On finished runs, with the state of the log."""
        self._at_work: tuple[RunWatch, Stamp] | None = None
        """The finished run that is being judged."""
        self._search = search or Search(root)
        self._criteria = criteria
        self._memory_bytes = memory_bytes
        self._next_search = 0.0

    @classmethod
    def of_one(cls, watch: RunWatch) -> "Fleet":
        """A single run that comes from no folder: a pipe."""
        fleet = cls(Path(watch.file.name))
        fleet.open = watch
        fleet.runs = [watch.file]
        fleet.piped = True
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
        with self.lock:
            self.runs = runs
            here = {run.path for run in runs}
            self._glances = {path: s for path, s in self._glances.items() if path in here}
            self._verdicts = {path: v for path, v in self._verdicts.items() if path in here}
        self._choose_beside()
        return changed

    @property
    def follows_others(self) -> bool:
        """Whether live runs are read beside the open one."""
        return bool(self._beside)

    def open_run(self, file: RunFile) -> RunWatch:
        """Follow ``file`` in full; a first sample of its history is ready on return."""
        watch = RunWatch(
            file, self._criteria, memory_bytes=self._memory_bytes, second_from=SECOND_BYTES
        )
        watch.open_overview()
        self._keep_verdict(self.open)
        self.close()
        with self.lock:
            if self.open is not None and _is_critical(self.open):
                self._told.add(self.open.path)
            self.open = watch
            self._beside.pop(file.path, None)
            self.critical.pop(file.path, None)
        return watch

    def _note(self, watch: RunWatch) -> None:
        """Remember that a run beside the open one is critical, or no longer so."""
        if not _is_critical(watch):
            self.critical.pop(watch.path, None)
            self._told.discard(watch.path)
        elif watch.path not in self._told:
            self.critical[watch.path] = watch.file.name
            self._told.add(watch.path)

    def close(self) -> None:
        """End what the open run started beside this process; what was read stays."""
        if self.open is not None:
            self.open.close()

    def read_as(self, request: SourceRequest) -> None:
        """From the next search on, by the same thread."""
        self._search.read_as(request)

    @property
    def request(self) -> SourceRequest:
        """How the search reads the logs: as which source, with which options."""
        return self._search.request

    def comparable(self, file: RunFile) -> PinnedRun:
        """``file`` as a run to compare with; it is read again only where it is not followed
        anyway.
        """
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
                if watch is self.open:
                    self.open_version += 1
                elif watch.complete:
                    self._note(watch)
        return moved

    def look_around(self) -> bool:
        """Glance at some of the runs that changed; true if there were any."""
        if self.piped:
            return False
        stale = [run for run in self.runs if self._is_stale(run)][:_GLANCES_A_TURN]
        for run in stale:
            found = run.glance()
            verdict = None
            if self._kept is not None and found.identity is not None:
                verdict = self._kept.load(found.identity)
            with self.lock:
                if verdict is not None and found.identity is not None:
                    self._verdicts[run.path] = found.identity, verdict
                at = None
                if (seen := self._glances.get(run.path)) is not None:
                    at = seen.changed_at
                    if (seen.file.modified, seen.file.size) != (run.modified, run.size):
                        at = time.monotonic()
                self._glances[run.path] = Seen(run, found, at)
        return bool(stale)

    def judge_finished(self) -> bool:
        """Judge a finished run for a few milliseconds; false if none is left."""
        if self._at_work is None:
            wanted = next(filter(self._is_queued, self.runs), None)
            if wanted is None:
                return False
            watch = RunWatch(wanted, self._criteria, patient=True, memory_bytes=VERDICT_MEMORY)
            identity = self._glances[wanted.path].ends.identity
            assert identity is not None  # else it may not be judged
            self._at_work = watch, identity
        watch, identity = self._at_work
        whole = False
        try:
            watch.advance(_SLICE_BYTES)
            if watch.unread:
                return True
            verdict = verdict_on(watch)
            with suppress(OSError):  # deleted meanwhile
                whole = not watch.error and watch.file.identity() == identity
        except Exception as error:  # one malformed log must not stop the reading of all others
            problem = safe_text(f"cannot be judged: {error!r}", 200)
            verdict = Verdict((), problem, "", 0, None)
        self._at_work = None
        self._keep(watch.path, identity, verdict, cached=whole)
        return True

    @property
    def is_judging(self) -> bool:
        """Whether runs are left to glance at or to judge, so that cards will change by
        themselves.
        """
        if self.piped:
            return False
        return any(self._is_stale(run) or self._is_queued(run) for run in self.runs)

    def _is_queued(self, run: RunFile) -> bool:
        seen = self._glances.get(run.path)
        if seen is None or not seen.may_be_judged or self._followed(run.path) is not None:
            return False
        return self._verdict(run.path, seen.ends.identity) is None

    def _verdict(self, path: Path, identity: Stamp | None) -> Verdict | None:
        state, verdict = self._verdicts.get(path, (None, None))
        if state != identity:
            return None
        return verdict

    def _keep(self, path: Path, identity: Stamp, verdict: Verdict, *, cached: bool) -> None:
        with self.lock:
            self._verdicts[path] = identity, verdict
        if cached and self._kept is not None:
            self._kept.keep(identity, verdict)

    def _keep_verdict(self, watch: RunWatch | None) -> None:
        if watch is None or (seen := self._glances.get(watch.path)) is None:
            return
        if (identity := seen.ends.identity) is None:
            return
        at_end = watch.complete and not watch.unread and watch.error is None
        if at_end and (*watch.file.inode, watch.source.size) == identity[:3]:
            watch.conclude_if_over()
            self._keep(watch.path, identity, verdict_on(watch), cached=True)

    def cards(self) -> list[RunCard]:
        """Of every run, newest first."""
        with self.lock:
            runs = self.runs
            glances = dict(self._glances)
            followed = dict(self._beside)
            if self.open is not None:
                followed[self.open.path] = self.open
                if self.piped:
                    runs = [self.open.file]  # its header came with the log
        return [self._card(run, glances.get(run.path), followed.get(run.path)) for run in runs]

    def _card(self, run: RunFile, seen: Seen | None, watch: RunWatch | None) -> RunCard:
        """From the last glance at ``run`` and from following it, if there were any."""
        known = seen or Seen(run, Glance(), None)
        card = _glanced(known, self._verdict(run.path, known.ends.identity))
        has_steps = known.ends.last is not None
        if watch is not None:
            card = _followed(watch, card, has_steps=has_steps)
            has_steps = has_steps or watch.latest is not None
        elif seen is None:
            card = replace(card, life=Life(RunState.UNKNOWN, RunState.UNKNOWN))
        elif run.is_read_whole:  # its end is unknown before it is unpacked
            card = replace(card, life=Life(RunState.ARCHIVED, RunState.ARCHIVED))
        if card.error and not has_steps:
            card = replace(card, life=Life(RunState.ERROR, "error"))
        step, planned = card.step, card.planned_steps
        if not has_steps and card.verdict is not None:
            step = card.verdict.last_step
        if planned is not None and step > planned:
            planned = None
        return replace(
            card,
            file=run,
            step=step,
            planned_steps=planned,
            judged=self._judged(run, watch),
            queued=self._is_queued(run),
            open=watch is not None and watch is self.open,
            pinned=self.pinned is not None and self.pinned.file.path == run.path,
            selected=run.path in self.selected,
        )

    def _judged(self, run: RunFile, watch: RunWatch | None) -> float:
        if watch is None and self._at_work is not None and self._at_work[0].path == run.path:
            watch = self._at_work[0]
        if watch is None:
            return 0.0
        return watch.judged

    def _is_stale(self, run: RunFile) -> bool:
        seen = self._glances.get(run.path)
        return seen is None or seen.file != run

    def _found(self) -> Sequence[RunFile]:
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
            age_s = age_of(run.modified, changed_at=seen.changed_at)
            if age_s < CRASHED_S and len(live) < MOST_FOLLOWED:
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

    def may_switch(self, following: bool) -> bool:
        """Whether a newer run may be opened automatically: nothing is lost by leaving this one.

        ``following``: the screen shows the newest step.
        """
        if self.open is None or self.open.latest is None:
            return True
        return self.open.complete and following and self.open.state()[0].ended
