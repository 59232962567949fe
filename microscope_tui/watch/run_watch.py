"""One run, followed, remembered and judged; the lock is held for a few milliseconds only."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from microscope_tui.diagnosis import ANYTHING, Criteria, Diagnosis, Episode
from microscope_tui.runlog import (
    EVERYTHING,
    Chunk,
    Defects,
    Entry,
    PipedLog,
    RouterInfo,
    RunFile,
    RunReader,
    RunRecord,
    Source,
    StepEntry,
    UnknownFormat,
    read_at,
)
from microscope_tui.watch.history import MAX_ROWS, History, Row
from microscope_tui.watch.judge import Ended, Judge, SecondProcess, guarded, second_process_helps
from microscope_tui.watch.scan import DEFAULT_MEMORY, Scan, preview, steps_in
from microscope_tui.watch.state import (
    CRASHED_S,
    Life,
    RunState,
    age_of,
    busy_text,
    life_of,
    life_of_busy,
    state_of,
)

SLICE_BYTES = 1 << 20
HOLD_S = 0.008
"""Most time for which the lock is held."""
_PATIENT_S = 0.5  # the same where no screen waits for the lock
_OVERVIEW_FROM_BYTES = 1 << 20
SECOND_BYTES = 4 << 20
"""From here on a second process is worth its start."""
LONG_BYTES = 64 << 20
"""The same without a screen, whose start it overlaps."""
_MOST_WAITING = 4 << 20  # bytes that the second process has not taken yet
_LISTEN_S = 0.02
_MOST_OF_A_LINE = 1 << 20


class RunWatch:
    """A run that grows: one thread calls ``advance``, any other reads under ``lock``.

    Until a long log has been read once, the properties show a sample of it (``sampled``).
    """

    def __init__(
        self,
        file: RunFile,
        criteria: Criteria = ANYTHING,
        *,
        source: Source | None = None,
        memory_bytes: int = DEFAULT_MEMORY,
        patient: bool = False,
        second_from: int | None = None,
    ) -> None:
        """Watch ``file``, or another source of its bytes.

        Args:
            criteria: by what the run is judged.
            memory_bytes: bound of the history.
            patient: no screen shows the run, so that more can be taken in at a time.
            second_from: bytes of a log from which a second process judges it, until that has caught
                up; by default none does. Call ``close`` in the end.
        """
        self.file = file
        self.lock = threading.RLock()
        self.error: str | None = None
        """Why the log cannot be read; what was read before stays."""
        self.memory_bytes = memory_bytes
        self._criteria = criteria
        self._patient = patient
        self._second_from = second_from if source is None else None
        self._second: SecondProcess | None = None
        self.judged_again = ""
        """Why a second process did not judge the log to its end."""
        self.source: Source = source or file.open()
        self._start()

    def _start(self) -> None:
        self.close()
        self.error = None
        self.foreign = False
        """Of another format version: nothing more is read."""
        self._reader = RunReader(self.file.name)
        self._judge = Judge(self.file.name, self._criteria)
        self.scan = Scan(self._reread, self.memory_bytes)
        """Of all records read so far; the properties below may show a sample instead."""
        self._overview: Scan | None = None
        self._monotonic = True
        self._scanning: Iterator[Entry] = iter(())
        self._scan_pending = False
        self._begun = False
        self.complete = False
        self.generation = getattr(self, "generation", -1) + 1
        """Changes when the log is replaced: earlier pins are invalid."""
        self.version = getattr(self, "version", -1) + 1
        """Changes with steps and history."""

    @property
    def path(self) -> Path:
        """Where the run is, and what identifies it; its lines are at ``source.path``."""
        return self.file.path

    @property
    def shown(self) -> Scan:
        """The scan to show: a sample of the file until all of it has been read."""
        return self._overview or self.scan

    @property
    def run(self) -> RunRecord | None:
        """The newest header of what is shown; ``None`` before one was read."""
        return self.shown.run

    @property
    def routers(self) -> Sequence[RouterInfo]:
        """Those of the header, in forward order; empty before one was read."""
        if self.run is None:
            return ()
        return self.run.routers

    @property
    def planned_steps(self) -> int | None:
        """Those of the header; ``None`` before one was read, or where it has none."""
        if self.run is None:
            return None
        return self.run.planned_steps

    @property
    def latest(self) -> StepEntry | None:
        """The newest step of what is shown; ``None`` before the first."""
        return self.shown.latest

    @property
    def last_step(self) -> int:
        """The number of the newest step of what is shown; 0 before the first."""
        if self.latest is None:
            return 0
        return self.latest.record.step

    @property
    def history(self) -> History:
        """The curves of what is shown; without any before a header was read."""
        return self.shown.history

    @property
    def sampled(self) -> bool:
        """Whether only a sample of the log is shown: its middle has not been read yet."""
        return self._overview is not None

    @property
    def diagnosis(self) -> Diagnosis | None:
        """So far; of a run that is over see ``conclude_if_over``."""
        return self._judge.diagnosis

    @property
    def episodes(self) -> Sequence[Episode]:
        """Those of the diagnosis so far."""
        if self.diagnosis is None:
            return ()
        return self.diagnosis.episodes

    @property
    def defects(self) -> Defects:
        """Lines that could not be used, counted by the reader of the log or by a source that
        translates.
        """
        return self.source.defects if self.source.translates else self._reader.defects

    @property
    def can_seek(self) -> bool:
        """Whether earlier steps can be read again: not from a compressed log, nor by a sample whose
        steps do not only increase.
        """
        return self.source.seekable and (self._overview is None or self._monotonic)

    @property
    def progress(self) -> float:
        """Share of the bytes that were read, 0 … 1; 1 only once the records of all of them are
        scanned.
        """
        done = self._reader.lines.line_start if self._is_file else self.source.offset
        return min(0.99 if self._scan_pending else 1.0, done / max(1, self.source.size))

    @property
    def judged(self) -> float:
        """Share of the log that the diagnosis has seen, 0 … 1; it may lag behind ``progress``."""
        if (second := self._second) is None:
            return 1.0 if self.complete else self.progress
        if self._is_file:
            return min(1.0, self._judge.offset / max(1, self.source.size))
        return self.progress * self._judge.offset / max(1, second.sent)  # both in lines

    @property
    def bounded_by_memory(self) -> bool:
        """Whether more memory would give the history a finer resolution."""
        history = self.scan.history
        return history.stride > 1 and history.capacity < MAX_ROWS

    def open_overview(self) -> None:
        """Sample a long log, for a first frame before the full scan."""
        self._start_second()
        try:
            found = preview(self.source, self.file, self.memory_bytes, _OVERVIEW_FROM_BYTES)
        except UnknownFormat as error:
            self.error = str(error)
        except OSError as error:
            self._fail(error)
        else:
            if found is not None:
                with self.lock:
                    self._overview, self._monotonic = found
                    self.version += 1

    def advance(self, max_bytes: int = SLICE_BYTES) -> bool:
        """Read on for a few milliseconds; true if anything changed. No log makes it raise.

        Call it from one thread only; ``max_bytes``: most bytes of the log at a time.
        """
        moved = self._read_on(max_bytes)
        self.conclude_if_over()
        return moved

    def conclude_if_over(self) -> None:
        """Judge a run that ended or is silent for good by its sums; take that back if it continues.

        Call it before you read a verdict long after the last ``advance``, which does it too.
        """
        with self.lock:
            diagnosis = self._judge.diagnosis
            if diagnosis is None or not self.complete or self._second is not None:
                return
            if self.source.busy_since is not None:  # it may continue
                return
            state, age = self.state()
            silent = state is RunState.STALE and (age or 0.0) > CRASHED_S
            diagnosis.conclude(state.ended or silent)

    def _read_on(self, max_bytes: int) -> bool:
        self._start_second()
        self.scan.make_room(self.lock)
        if self._scan_on():
            return True
        if self._second is not None and len(self._second.waiting) > _MOST_WAITING:
            self._listen(_LISTEN_S)
            return True
        before = self.source.offset
        try:
            chunk = self.source.read(max_bytes)
        except OSError as error:
            return self._fail(error)
        moved = bool(chunk.data) or self.source.offset > before  # not all of a source is lines
        self._begin(chunk)
        self._scan_on()
        finished = self._finish_scan()
        if moved or chunk.restarted or finished:
            self._listen()
            return True
        second = self._second is not None and not self.source.deleted
        self._listen(_LISTEN_S, at_end=True)
        return second

    @property
    def unread(self) -> bool:
        """Whether ``advance`` has more to do now: bytes to read, records to scan, or a second
        process to wait for. Of a log that cannot be read nothing is awaited.
        """
        judging = self.foreign and self._second is not None
        if self.source.deleted or (self.error is not None and not judging):
            return self._scan_pending
        scanned = self.complete and self.source.exhausted and not self._scan_pending
        return not scanned or self._second is not None

    def read_all(self) -> None:
        """Call ``advance`` until nothing is ``unread``; for commands, which have no screen to keep
        alive.
        """
        self.advance()
        while self.unread:
            self.advance()

    def close(self) -> None:
        """End the second process; what was read stays."""
        if self._second is not None:
            self._second.close()
            self._second = None

    def state(self, now: float | None = None) -> tuple[RunState, float | None]:
        """In one word, and seconds since the last change (``None`` if unknown).

        ``now``: Unix seconds; by default the clock's.
        """
        with self.lock:
            age = self.source.modified
            if age is not None:
                age = age_of(age, now, self.source.changed_at)
            word = state_of(
                age,
                deleted=self.source.deleted,
                has_steps=self.latest is not None,
                end=self.shown.end,
                step_times_s=list(self.scan.intervals),
                logs_its_end=not self.file.foreign,
            )
            if self.error is not None and word is RunState.WAITING:
                word = RunState.ERROR
            return word, age

    def life(self) -> Life:
        """``state`` in the words of the screen, which takes a long pause for normal if the run had
        some.
        """
        with self.lock:
            pauses = list(self.scan.intervals), self.scan.longest_pause
            life = life_of(*self.state(), *pauses, self.last_step, self.planned_steps)
            return life_of_busy(life, self.source.busy_since)

    def busy(self) -> str:
        """``busy since 12:04:31``: why nothing new is read; empty if not, or for a few seconds."""
        return busy_text(self.source.busy_since)

    def _begin(self, chunk: Chunk) -> None:
        with self.lock:
            if chunk.restarted:
                self._start()
            elif self.error is not None and not self.foreign and not self.source.deleted:
                self.error = None  # it can be read again
            if not chunk.data:
                return
            if not self.foreign:
                if not self._begun and self._is_file:
                    lines = max(1, chunk.data.count(b"\n"))
                    self.scan.expected_steps = self.source.size * lines // len(chunk.data)
                self._begun = True
                self._scanning = self._reader.feed(chunk.data)
        if self._second is not None and not self._is_file:
            self._second.judge_lines(chunk.data)

    def _scan_on(self) -> bool:
        until = time.monotonic() + (_PATIENT_S if self._patient else HOLD_S)
        more = False
        with self.lock:
            try:
                for entry in self._scanning:
                    guarded(self._take, entry, self.defects, self._reader.lines.line_number)
                    if more := time.monotonic() > until:
                        break
            except UnknownFormat as error:
                self.error = str(error)
                self.foreign = True
            if self._overview is None:  # otherwise it is not visible yet
                self.version += self.scan.commit()
        self._scan_pending = more
        return more

    def _take(self, entry: Entry) -> None:
        self.scan.take(entry)
        if self._second is None:
            self._judge.take(entry)
        if isinstance(entry, RunRecord) and isinstance(self.source, PipedLog):
            self.file = RunFile(entry.run, self.path, 0.0)  # a pipe has no folder for a name

    def _finish_scan(self) -> bool:
        if self.complete or self._scan_pending or not self.source.exhausted:
            return False
        if self.source.deleted and self.source.offset < self.source.size:
            return False  # a sample shows more of it
        with self.lock:
            self.complete = True
            self._overview = None
            self.scan.commit()
            self.version += 1
        return True

    @property
    def _is_file(self) -> bool:
        return self.source.kept() == EVERYTHING

    def _start_second(self) -> None:
        if self._begun or self._second is not None or self._second_from is None:
            return
        if self.file.size < self._second_from or not second_process_helps():
            return
        with contextlib.suppress(OSError):  # it cannot start: all runs in this process
            self._second = SecondProcess(self._judge)
            if self._is_file:  # it need not wait for the scan
                start = max(0, self.file.size - _MOST_OF_A_LINE)
                # Without a newline it shrank since it was found, or a line is very long.
                if lines := read_at(self.source.path, start, _MOST_OF_A_LINE).rfind(b"\n") + 1:
                    self._second.judge_file(self.source.path, start + lines)

    def _listen(self, timeout_s: float = 0.0, *, at_end: bool = False) -> None:
        """Exchange with the second process; ``at_end``: nothing is left to read now."""
        if (second := self._second) is None:
            return
        try:
            answer = second.exchange(timeout_s)
        except Ended as error:
            if not self.source.deleted:  # else what was read stays
                self.judged_again = self.judged_again or str(error)
                self._read_again()
            return
        if answer is not None:
            with self.lock:
                self._judge = answer
                self.version += 1
        self._keep_busy(second, at_end)

    def _keep_busy(self, second: SecondProcess, at_end: bool) -> None:
        """Give it what the scan has read beyond it, or take over from it."""
        ahead = self.source.offset - second.sent if self._is_file else 0
        if self._judge.offset < second.sent:
            if at_end and not self._is_file:
                second.ask()
        elif ahead > 0:
            if not self.source.deleted:
                second.judge_file(self.source.path, self.source.offset)
        elif not at_end:
            return
        elif ahead == 0:
            self._take_over(second)
        elif not self.source.deleted:
            self._read_again()  # it shrank before the scan began

    def _take_over(self, second: SecondProcess) -> None:
        with self.lock:
            self._second = None
            self._judge.feed(b"\n")  # the last line may lack its newline
            self.defects.merge(self._judge.defects)
            self.version += 1
        second.close()

    def _read_again(self) -> None:
        self._second_from = None
        with self.lock:
            self.source = self.file.open()  # the lines that it had are gone, too
            self._start()
        self.open_overview()

    def _reread(self, row: Row, run: RunRecord, limit: int) -> Iterator[StepEntry]:
        if self.source.seekable:
            with contextlib.suppress(OSError):  # it is gone: the next poll reports it
                yield from steps_in(
                    self.source.path, run, row, limit, self._reader.lines.line_start
                )

    def _fail(self, error: OSError) -> bool:
        is_new = self.error is None
        self.error = f"cannot be read: {error.strerror or error}"
        return is_new
