"""Appends records to a run log; never stops the training.

A line is written with one ``write``, so that a reader sees it torn only while it is being written
or after a crash. Failures and their effects:

- **A write fails**: one warning, and the log is reopened at most once a second until it can be
  written. Steps in between are counted, not tried; a ``lost_records`` event gives their number.
- **Half a line was written**: it is cut off again. If that fails too, the next line starts with a
  newline, so that a torn line costs only itself.
- **The file is deleted, rotated, replaced or emptied**: the log continues in the file that has its
  name now. An empty file gets the run record first; lines of other writers are never cut.
- **A crash** of the program loses nothing that was written, a power cut what came after the last
  ``sync`` (at checkpoints).
- **After a fork** the log belongs to the process that opened it; the child writes nothing.

``BackgroundLog`` writes on a thread of its own, from a queue that is bounded in records and bytes.
When the disk is too slow, steps lose their matrices while more than half of the queue is used, and
when it is full, new steps are dropped and counted. Run records and events have a reserve of their
own. At exit the program waits a few seconds for the queue. Neither a KeyboardInterrupt nor a signal
handler that logs can leave a lock held.
"""

import atexit
import contextlib
import logging
import math
import os
import queue
import sys
import threading
import time
from array import array
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from microscope_tui.runlog.records import MATRICES

_logger = logging.getLogger(__name__)

RETRY_S = 1.0
"""After a failed write before the next attempt; steps in between count as lost."""
QUIET_S = 60.0
"""Seconds between warnings about a disk that keeps failing."""

Record = Mapping[str, Any]
MEANS = MATRICES[:2]

MAX_RECORDS = 4096
"""Of queued steps: minutes of a hanging disk for a small model, in 27 MB."""
MAX_BYTES = 64 * 2**20
"""Of queued steps: 250 with 58 routers of 256 experts (0.27 MB each)."""
RESERVE_RECORDS = 256
RESERVE_BYTES = 4 * 2**20
"""For run records and events, so that a queue full of steps still accepts them."""

SYNC_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 5.0


class RunLogWriter:
    """Appends JSON lines to ``path``; a torn last line of an earlier process is cut off first."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Open ``path`` for append and create its folder.

        A last line that is cut off is removed.

        Raises:
            OSError: the log cannot be created at all: raised at the start, not hours later.
        """
        self.path = path
        self.lost_records = 0
        """Lost records that the log does not report yet."""
        self._clock = clock
        self._owner = os.getpid()
        self._head = b""  # the latest run record: an empty file starts with it again
        self._head_is_due = False
        self._retry_at = self._warn_at = -math.inf  # the first only after a failure
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: int | None = None
        self._first = b""  # a newline where the file ends in half a line
        self._open(cut_torn_tail=True)

    @property
    def is_forked(self) -> bool:
        """Whether this process is a child of the one that opened the log; then nothing is
        written.
        """
        return os.getpid() != self._owner

    def write(self, record: Mapping[str, Any]) -> bool:
        """Append one record; ``False`` if it was lost (counted, and reported later in the log).

        A run record is owed instead: it is written before the next record that fits.
        """
        if self.is_forked:
            self._warn("belongs to the parent process, a fork does not write to it")
            return False
        kind = record.get("kind")
        if kind == "step" and self._clock() < self._retry_at:
            self.lost_records += 1
            return False
        line = encode_record(record)
        if kind == "run":
            self._head, line = line, b""
            self._head_is_due = True
        written = self._try_to_append(line, record.get("step"))
        if not written and kind != "run":
            self.lost_records += 1
        return written

    def sync(self) -> bool:
        """Force the log to disk; ``False``, with a warning, if that fails."""
        if self._file is None or self.is_forked:
            return False
        try:
            os.fsync(self._file)
        except OSError as error:
            self._warn(f"could not be synced to disk ({error})")
            return False
        return True

    def close(self) -> None:
        """Write pending reports, sync and close; a later ``write`` reopens the log."""
        if not self.is_forked:
            if self.lost_records or self._head_is_due:
                self._try_to_append(b"", None)
            if self.lost_records:
                _logger.warning("%s: %d records are lost", self.path, self.lost_records)
            self.sync()
        self._let_go()

    def _try_to_append(self, line: bytes, step: int | None) -> bool:
        if self.lost_records:
            missing = {"kind": "event", "event": "lost_records", "time": time.time()}
            missing |= {"step": step, "values": {"count": self.lost_records}}
            line = encode_record(missing) + line
        try:
            self._append(line)
        except OSError as error:
            self._let_go()  # opening it again repairs a stale handle or a torn line
            if self._retry_at == -math.inf:
                self._warn(f"cannot be written ({error}); lost records are counted")
            self._retry_at = self._clock() + RETRY_S
            return False
        self.lost_records = 0
        self._retry_at = -math.inf
        return True

    def _append(self, lines: bytes) -> None:
        size = self._size_of_open_log()
        if self._head_is_due or not size:
            lines = self._head + lines
        lines = self._first + lines
        assert self._file is not None
        written = os.write(self._file, lines)
        if written < len(lines):  # a disk that is almost full takes half a line: undo it
            with contextlib.suppress(OSError):
                if os.fstat(self._file).st_size == size + written:  # no one else wrote since
                    os.ftruncate(self._file, size)
            raise OSError(f"only {written} of {len(lines)} bytes fitted on the disk")
        self._first = b""
        self._head_is_due = False

    def _size_of_open_log(self) -> int:
        """Opens the file at the log's path if needed."""
        if self._file is not None:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                status = os.stat(self.path)
                if os.path.samestat(status, self._status):
                    return status.st_size
            self._let_go()  # deleted or replaced: writing on would feed a file without a name
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._open(cut_torn_tail=False)
        return self._status.st_size

    def _open(self, *, cut_torn_tail: bool) -> None:
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            if cut_torn_tail:
                _cut_torn_tail(file)
            self._status = os.fstat(file)
            size = self._status.st_size
            self._first = b""
            if size and os.pread(file, 1, size - 1) != b"\n":
                self._first = b"\n"
        except OSError:
            os.close(file)
            raise
        self._file = file

    def _let_go(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                os.close(file)
            except OSError as error:  # network file systems report failed writes only here
                self._warn(f"could not be closed ({error}): its last lines may be missing")

    def _warn(self, what: str) -> None:
        now = self._clock()
        if now >= self._warn_at:
            self._warn_at = now + QUIET_S
            _logger.warning("%s: %s; training continues", self.path, what)


def encode_record(record: Mapping[str, Any]) -> bytes:
    """One record as one line. Non-finite numbers become the strings that the format names."""
    with contextlib.suppress(TypeError):  # a kind of number or mapping that it does not know
        line = msgspec.json.encode(record)
        if b"null" not in line:  # neither a number that JSON lacks, nor ``None``
            return line + b"\n"
    return msgspec.json.encode(_named_non_finite(record)) + b"\n"


def rounded(value: float | None, digits: int) -> float | None:
    """``value`` with so many significant digits: half the bytes, and more than screens show."""
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.{digits}g}")


def _named_non_finite(value: Any) -> Any:
    """NaN and the infinities become their names (msgspec writes null)."""
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        if math.isnan(value):
            return "NaN"
        return "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _named_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        with contextlib.suppress(TypeError, OverflowError):  # not numbers, or a huge one
            if all(map(math.isfinite, value)):  # at C speed: matrices are most of a line
                return value
        return [_named_non_finite(item) for item in value]
    return value


def _cut_torn_tail(file: int) -> None:
    """Truncate to the last newline, so that the next record starts on a line of its own."""
    end = position = os.fstat(file).st_size
    while position > 0:
        start = max(0, position - 65536)
        newline = os.pread(file, position - start, start).rfind(b"\n")
        if newline >= 0:
            position = start + newline + 1
            break
        position = start
    if position < end:
        os.ftruncate(file, position)


def without_matrices(record: Record, matrices: bool) -> Record:
    """The record as it is if ``matrices``, else a copy without its matrices."""
    if matrices:
        return record
    return {key: value for key, value in record.items() if key not in MATRICES}


class BackgroundLog:
    """Writes on a daemon thread; see the module."""

    def __init__(
        self, log: RunLogWriter, *, finish: Callable[[Record, bool], Record] = without_matrices
    ) -> None:
        """Start the thread that writes to ``log``; from now on only this object may use or close
        it.

        Args:
            log: Opened for append.
            finish: Called on that thread with a record and whether its matrices are wanted;
                returns the record to write. A place for work that the training can do without.
        """
        self._log = log
        self._finish = finish
        # Both are C code: nothing can interrupt them halfway and leave them locked.
        self._queue: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._lock = threading.RLock()
        self._records = self._bytes = 0  # queued, including the one being written
        self._dropped = 0  # steps dropped since the last queued record
        self._late: queue.SimpleQueue[bool] | None = None  # answer to a sync that took too long
        self._closing = self._abandoned = False
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="run log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def write(self, record: Record) -> None:
        """Queue the record; never waits. It must not be changed afterwards."""
        if self._log.is_forked:
            self._log.write(record)  # warns, and writes nothing
            return
        if self._closing:
            self._warn_once("a record arrived after the log was closed and is not written")
            return
        size = estimated_bytes(record)
        most_records = MAX_RECORDS
        most_bytes = MAX_BYTES
        if record.get("kind") != "step":
            most_records += RESERVE_RECORDS
            most_bytes += RESERVE_BYTES
        with self._lock:
            full = self._records >= most_records or self._bytes + size > most_bytes
            if full and self._records:  # one record always fits, however large
                self._dropped += 1
            else:
                self._queue.put(partial(self._write, record, size, self._dropped))
                self._dropped = 0
                self._records += 1
                self._bytes += size
                return
        self._warn_once("the disk is too slow, steps are dropped; lost records are counted")

    def sync(self, timeout_s: float = SYNC_TIMEOUT_S) -> bool:
        """Wait until all is written and synced; ``False`` on a failure or a timeout, after which it
        does not wait again until the disk makes progress."""
        is_late = self._late is not None and self._late.empty()
        if self._closing or self._log.is_forked or is_late:
            return False
        synced = queue.SimpleQueue[bool]()
        self._queue.put(lambda: synced.put(self._log.sync()))
        try:
            return synced.get(timeout=timeout_s)
        except queue.Empty:
            self._late = synced
            self._warn_once(f"not on disk after {timeout_s:g} s: the disk is too slow")
            return False

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Write the queue and close the log; give up on steps after ``timeout_s``."""
        if self._log.is_forked or self._abandoned:
            return
        if not self._closing:
            self._closing = True
            self._queue.put(None)
        self._thread.join(timeout_s)  # if interrupted here, the exit handler waits once more
        if self._thread.is_alive():
            self._abandoned = True
            with self._lock:
                missing = self._records + self._dropped
            self._warn_once(f"{missing} records could not be written within {timeout_s:g} s")
        atexit.unregister(self.close)

    def _run(self) -> None:
        while (task := self._queue.get()) is not None:
            try:
                task()
            except Exception as error:  # a bad record must not end the records after it
                self._log.lost_records += 1
                self._warn_once("a record cannot be written and is lost", f": {error!r}")
        with self._lock:
            self._log.lost_records += self._dropped
        self._log.close()

    def _write(self, record: Record, size: int, lost_before: int) -> None:
        with self._lock:
            waiting, waiting_bytes = self._records - 1, self._bytes - size
        crowded = waiting > MAX_RECORDS / 2 or waiting_bytes > MAX_BYTES / 2
        try:
            self._log.lost_records += lost_before
            if self._abandoned and record.get("kind") == "step":
                self._log.lost_records += 1  # too late for steps; the end event is still written
                return
            if crowded:
                self._warn_once("the disk is slow, steps are written without their counts")
            self._log.write(self._finish(record, not crowded))
        finally:
            with self._lock:
                self._records -= 1
                self._bytes -= size

    def _warn_once(self, what: str, why: str = "") -> None:
        if what not in self._said:
            self._said.add(what)
            _logger.warning("%s: %s%s; training continues", self._log.path, what, why)


def estimated_bytes(value: Any) -> int:
    """About how much memory a record takes, without visiting every number of a matrix."""
    if isinstance(value, Mapping):
        return 64 + sum(100 + estimated_bytes(item) for item in value.values())
    if not isinstance(value, list | tuple):
        return sys.getsizeof(value)
    if value and isinstance(value[0], list | tuple | array | Mapping):
        return 64 + sum(8 + estimated_bytes(item) for item in value)
    return 64 + 40 * len(value)  # a pointer, and a number that it points to
