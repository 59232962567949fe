"""Finished runs, judged one at a time in the background.

Only one thread may call ``work_on`` and ``recall``; any thread may ask for verdicts. One run is
read at a time, a few milliseconds per call, with a small history: a folder of large logs takes
long, but never much memory.
"""

from pathlib import Path

from microscope_tui.diagnosis import Criteria
from microscope_tui.runlog import Identity, RunFile, safe_text
from microscope_tui.watch.run_watch import RunWatch
from microscope_tui.watch.verdict import Verdict, verdict_on
from microscope_tui.watch.verdict_cache import VerdictCache

_MEMORY_BYTES = 1 << 20
_SLICE_BYTES = 1 << 18


class FinishedRuns:
    """The verdicts on finished runs."""

    def __init__(self, criteria: Criteria, cache: VerdictCache | None = None) -> None:
        self._criteria = criteria
        self._cache = cache
        self._verdicts: dict[Path, tuple[Identity, Verdict]] = {}
        self._moving: dict[Path, Identity] = {}
        """Logs that changed while they were judged: not tried again in that state."""
        self._at_work: tuple[RunWatch, Identity] | None = None

    def verdict(self, path: Path, identity: Identity | None) -> Verdict | None:
        """The verdict on the log at ``path`` in this state, if there is one."""
        known = self._verdicts.get(path)
        return known[1] if known is not None and known[0] == identity else None

    def progress(self, path: Path) -> float:
        """Judged share of the log at ``path``, if it is being judged."""
        at_work = self._at_work
        return at_work[0].judged if at_work is not None and at_work[0].path == path else 0.0

    def is_wanted(self, path: Path, identity: Identity | None) -> bool:
        """Whether it can be judged, and was not judged in this state."""
        if identity is None or self._moving.get(path) == identity:
            return False
        return self.verdict(path, identity) is None

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
        for known in (self._verdicts, self._moving):
            for gone in known.keys() - paths:
                del known[gone]
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
        try:
            now = None if watch.source.deleted else watch.file.identity()
        except OSError:
            now = None
        if watch.error:  # it may be readable tomorrow
            self._verdicts[watch.path] = identity, verdict_on(watch)
        elif now == identity:
            self.keep(watch.path, identity, verdict_on(watch))
        else:
            self._moving[watch.path] = identity
