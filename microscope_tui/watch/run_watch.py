"""``RunWatch``: one run, followed, remembered and judged.

``advance`` reads from the disk without holding the lock and takes the bytes in under it, a slice
at a time, so that a reader thread on a slow network mount never freezes a screen.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path

from microscope_tui import measures
from microscope_tui.diagnosis.engine import Diagnosis
from microscope_tui.diagnosis.evidence import MatrixSource
from microscope_tui.runlog.discover import RunFile
from microscope_tui.runlog.follow import LogFollower
from microscope_tui.runlog.overview import sample
from microscope_tui.runlog.reader import Defects, RunReader, StepEntry
from microscope_tui.runlog.records import (
    EventRecord,
    RunRecord,
    StepRecord,
    UnknownFormat,
    Values,
)
from microscope_tui.watch.history import NAN, History

SLICE_BYTES = 1 << 17
_OVERVIEW_FROM_BYTES = 1 << 20
_OVERVIEW_SAMPLES = 240


class RunWatch:
    """The state of one run: header, latest step, history, episodes."""

    def __init__(self, file: RunFile, ignore: Collection[str] = ()) -> None:
        """``ignore``: names of rules that the diagnosis leaves out."""
        self.file = file
        self._ignore = ignore
        self.lock = threading.RLock()
        self.error: str | None = None
        """Why the log cannot be read, in words; everything seen before stays."""
        self._follower = LogFollower(file.path)
        self._start()

    def _start(self) -> None:
        self.error = None
        self._foreign = False  # another format version: nothing more is read from this file
        self._scanned: tuple[StepEntry | None, StepEntry | None] = (None, None)
        self._reader = RunReader(self.file.name)
        self.run: RunRecord | None = None
        self.diagnosis: Diagnosis | None = None
        self.latest: StepEntry | None = None
        self.with_counts: StepEntry | None = None
        """The latest step whose line holds counts."""
        self.end: EventRecord | None = None
        self.lost_records = 0
        """Records that the writer says it could not write."""
        self.evaluations: deque[EventRecord] = deque(maxlen=1000)
        self.history: History | None = None
        self.preview: History | None = None
        """A sampled history, shown until the whole file has been read."""
        self.complete = False
        """The whole file has been read once."""
        self._intervals: deque[float] = deque(maxlen=33)

    @property
    def path(self) -> Path:
        """The log file."""
        return self.file.path

    @property
    def defects(self) -> Defects:
        """Lines that could not be read."""
        return self._reader.defects

    @property
    def deleted(self) -> bool:
        """The file is gone; what was read stays."""
        return self._follower.deleted

    @property
    def progress(self) -> float:
        """Share of the file that has been read, 0 … 1."""
        return min(1.0, self._follower.offset / max(1, self._follower.size))

    def open_overview(self) -> None:
        """Sample the whole history of a long log, for a first picture before the full scan."""
        try:
            if self.path.stat().st_size < _OVERVIEW_FROM_BYTES:
                return
            reader, samples = sample(self.path, self.file.name, _OVERVIEW_SAMPLES)
        except UnknownFormat as error:
            self.error = str(error)
            return
        except OSError as error:
            self.error = f"cannot be read: {error.strerror or error}"
            return
        with self.lock:
            samples = [e for e in samples if reader.run and e.routers == len(reader.run.routers)]
            if reader.run is None or not samples:
                return
            self.run, self.latest = reader.run, samples[-1]
            self.with_counts = next((e for e in reversed(samples) if e.has_counts), None)
            self.preview = _new_history(reader.run)
            for entry in samples:
                complete_summary(entry)
                _remember(self.preview, reader.run, entry)

    def advance(self, max_bytes: int = SLICE_BYTES) -> bool:
        """Read on by one slice; true if anything changed. Never raises because of the log."""
        try:
            chunk = self._follower.read(max_bytes)
        except OSError as error:
            changed = self.error is None
            self.error = f"cannot be read: {error.strerror or error}"
            return changed
        with self.lock:
            if chunk.restarted:
                self._start()
            elif self.error is not None and not self._foreign:
                self.error = None  # it can be read again
            was_complete = self.complete
            try:
                if not self._foreign:
                    self._take_in(chunk.data)
            except UnknownFormat as error:
                self.error, self._foreign = str(error), True
            self.complete = self.complete or self._follower.exhausted
            if self.complete and not was_complete:
                self.preview = None
                self.latest, self.with_counts = self._scanned
        return bool(chunk.data) or chunk.restarted or self.complete != was_complete

    def read_all(self) -> None:
        """Read everything that the file holds now."""
        while True:
            changed = self.advance(1 << 20)
            if self._follower.exhausted and not changed:
                return
            if self.error is not None:
                return

    def _take_in(self, data: bytes) -> None:
        for entry in self._reader.feed(data):
            try:
                match entry:
                    case StepEntry():
                        self._take_step(entry)
                    case RunRecord():
                        self._take_run(entry)
                    case EventRecord():
                        self._take_event(entry)
            except (ArithmeticError, LookupError, ValueError, TypeError) as error:
                # Monitoring never dies because of its data: the record is lost, and said.
                self.defects.add(self._reader.line_number, f"not understood: {error!r}"[:120])

    def _take_run(self, run: RunRecord) -> None:
        before = self.run if self.diagnosis is not None else None
        self.run, self.end = run, None
        if self.latest is not None and self.latest.routers != len(run.routers):
            self.preview = self.latest = self.with_counts = None  # another model from here on
        if self._scanned[0] is not None and self._scanned[0].routers != len(run.routers):
            self._scanned = (None, None)
        if before is None or before.routers != run.routers or self.history is None:
            self.history = _new_history(run)
            self.diagnosis = Diagnosis(run, self._ignore)
        elif self.diagnosis is not None:
            self.diagnosis.run = run
            # Without a step to resume at, the steps themselves say whether they go backwards.
            if run.resumed_at_step is not None:
                at = max(1, min(run.resumed_at_step, self.history.last_step + 1))
                self.diagnosis.restart(at)
                self.history.restart(at)

    def _take_step(self, entry: StepEntry) -> None:
        if self.run is None or self.history is None or self.diagnosis is None:
            return
        scanned, counted = self._scanned
        if scanned is not None and scanned.record.step == entry.record.step:
            step = entry.record.step
            self.defects.add(self._reader.line_number, f"step {step:,} again: two writers?")
            return
        self.end = None
        complete_summary(entry)
        self._scanned = (entry, entry if entry.has_counts else counted)
        if self.preview is None:
            self.latest, self.with_counts = self._scanned
        self._note_interval(entry.record)
        _remember(self.history, self.run, entry)
        self.diagnosis.observe(entry.record, _source(entry))

    def _take_event(self, event: EventRecord) -> None:
        if self.diagnosis is not None:
            self.diagnosis.observe_event(event)
        if event.event == "end":
            self.end = event
        elif event.event == "lost_records":
            self.lost_records += int(max(0.0, min(1e15, event.values.get("count", 1.0))))
        elif event.event == "eval":
            self.evaluations.append(event)

    def _note_interval(self, record: StepRecord) -> None:
        if record.step_time_s is not None and math.isfinite(record.step_time_s):
            self._intervals.append(record.step_time_s)

    def state(self, now: float | None = None) -> tuple[str, float | None]:
        """The state of the run in one word, and the age of its last sign of life in seconds.

        ``live``, ``slow``, ``stale``, ``crashed?`` by the age of the file (clock skew counts as
        age zero); ``finished``, ``stopped``, ``failed`` by the last event; ``deleted``.
        """
        with self.lock:
            return self._state(now)

    def _state(self, now: float | None) -> tuple[str, float | None]:
        modified = self._follower.modified
        age = None if modified is None else max(0.0, (now or time.time()) - modified)
        if self.deleted:
            return "deleted", age
        if self.end is not None:
            words = {"finished": "finished", "failed": "failed"}
            return words.get(self.end.reason, "stopped"), age
        if age is None or self.latest is None:
            return "waiting", age
        usual = sorted(self._intervals)[len(self._intervals) // 2] if self._intervals else 1.0
        if age > max(600.0, 10 * usual):
            return "crashed?", age
        if age > max(60.0, 10 * usual):
            return "stale", age
        return ("slow" if age > max(5.0, 3 * usual) else "live"), age


def complete_summary(entry: StepEntry) -> None:
    """Derive from the counts what a foreign writer left out of the summaries."""
    summary, names = entry.record.router, ("effective_experts", "max_load", "dead_experts")
    given = {name: getattr(summary, name) for name in names}
    if not entry.has_counts or all(v is not None and None not in v for v in given.values()):
        return
    rows = entry.matrices().tokens_per_expert
    derived = measures.summarise([row or [] for row in rows])
    for name, values in given.items():
        mine = [
            None if row is None else value for row, value in zip(rows, derived[name], strict=True)
        ]
        theirs = values or [None] * len(rows)
        filled = [m if t is None else t for t, m in zip(theirs, mine, strict=True)]
        setattr(summary, name, filled)


def _source(entry: StepEntry) -> MatrixSource:
    return lambda: entry.matrices() if entry.has_counts else None


def _new_history(run: RunRecord) -> History:
    routers = len(run.routers)
    per_router = ("collapse_index", "entropy", "mean_entropy", "drop_rate", "max_load")
    return History({"loss": 1, **dict.fromkeys(per_router, routers)})


def _remember(history: History, run: RunRecord, entry: StepEntry) -> None:
    record, routers = entry.record, len(run.routers)
    router = record.router
    effective = router.effective_experts or [None] * routers
    indices = (
        measures.collapse_index(value, info.num_experts, info.top_k)
        for value, info in zip(effective, run.routers, strict=True)
    )
    history.add(
        record.step,
        {
            "loss": [NAN if record.loss is None else record.loss],
            "collapse_index": [NAN if index is None else index for index in indices],
            "entropy": _row(router.entropy, routers),
            "mean_entropy": _row(router.mean_entropy, routers),
            "drop_rate": _row(router.drop_rate, routers),
            "max_load": _row(router.max_load, routers),
        },
    )


def _row(values: Values | None, routers: int) -> Sequence[float]:
    if values is None:
        return [NAN] * routers
    return [NAN if value is None else value for value in values]
