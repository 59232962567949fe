"""Writes a run log on a background thread: the training never waits for the disk.

Records queue up in memory, bounded in number and in bytes (below). When the disk is too slow, the
least important data is dropped first:

1. While more than half of the queue is used, steps are written without their matrices
(``tokens_per_expert``, ``expert_bias``); the summaries of every router stay.
2. When the queue is full, new steps are dropped and counted; a ``lost_records`` event in the gap
gives the number.
3. Run records and events have a reserve of their own and are never dropped in favour of steps.

A record that cannot be encoded is lost with a warning; the thread continues. At exit the program
waits a few seconds for the queue to drain, no longer. A forked child has no writing thread: every
method returns at once and writes nothing, because the log belongs to the parent. Neither a
KeyboardInterrupt nor a signal handler that logs can leave a lock held.
"""

import atexit
import logging
import queue
import threading
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from microscope_tui.runlog.writer import RunLogWriter

_logger = logging.getLogger(__name__)

Record = Mapping[str, Any]
MEANS = ("mean_weight", "mean_output_norm")
MATRICES = (*MEANS, "expert_bias", "tokens_per_expert")

MAX_RECORDS = 4096
"""Maximum number of queued steps: minutes of a hanging disk for a small model (6 kB per step), in
27 MB.
"""
MAX_BYTES = 64 * 2**20
"""Maximum bytes of queued steps: 250 steps of 58 routers of 256 experts (0.27 MB each)."""
RESERVE_RECORDS = 256
RESERVE_BYTES = 4 * 2**20
"""Additional bytes for run records and events, so that a queue full of steps still accepts them."""

SYNC_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class _Entry:
    record: Record
    size: int
    lost_before: int


@dataclass(frozen=True, slots=True)
class _Mark:
    """A marker in the queue: everything before it is written when the thread reaches it."""

    last: bool = False
    synced: "queue.SimpleQueue[bool]" = field(default_factory=queue.SimpleQueue)


def without_matrices(record: Record, matrices: bool) -> Record:
    """The record, or the record without its matrices (rule 1 above)."""
    return record if matrices else {k: v for k, v in record.items() if k not in MATRICES}


class BackgroundLog:
    """Encodes and writes records on a daemon thread; see the module."""

    def __init__(
        self,
        log: RunLogWriter,
        *,
        finish: Callable[[Record, bool], Record] = without_matrices,
        max_records: int = MAX_RECORDS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Start the thread that writes to ``log``; this object takes ownership of it.

        Args:
            finish: called on that thread with a record and whether its matrices are wanted;
                returns the record to be written. A place for work that the training can do without.
        """
        self._log = log
        self._finish = finish
        self._max_records, self._max_bytes = max_records, max_bytes
        # Both are C code: nothing can interrupt them halfway and leave them locked.
        self._queue: queue.SimpleQueue[_Entry | _Mark] = queue.SimpleQueue()
        self._lock = threading.RLock()
        self._records = self._bytes = 0  # queued, including the one being written
        self._dropped = 0  # steps dropped since the last queued record
        self._late: _Mark | None = None
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
        is_step = record.get("kind") == "step"
        most_records = self._max_records + (0 if is_step else RESERVE_RECORDS)
        most_bytes = self._max_bytes + (0 if is_step else RESERVE_BYTES)
        with self._lock:
            full = self._records >= most_records or self._bytes + size > most_bytes
            if full and self._records:  # one record always fits, however large
                self._dropped += 1
            else:
                entry = _Entry(record, size, self._dropped)
                self._dropped = 0
                self._records += 1
                self._bytes += size
                self._queue.put(entry)
                return
        self._warn_once("the disk is too slow, steps are dropped; lost records are counted")

    def sync(self, timeout_s: float = SYNC_TIMEOUT_S) -> bool:
        """Wait until everything queued is written and synced; ``False`` on a timeout or failure.

        After a timeout it does not wait again until the disk makes progress.
        """
        if self._closing or self._log.is_forked:
            return False
        if self._late is not None and self._late.synced.empty():
            return False
        mark = _Mark()
        self._queue.put(mark)
        try:
            synced = mark.synced.get(timeout=timeout_s)
        except queue.Empty:
            self._late = mark
            self._warn_once(f"not on disk after {timeout_s:g} s: the disk is too slow")
            return False
        self._late = None
        return synced

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Write the queue and close the log; give up on steps after ``timeout_s``."""
        if self._log.is_forked or self._abandoned:
            return
        if not self._closing:
            self._closing = True
            self._queue.put(_Mark(last=True))
        self._thread.join(timeout_s)  # if interrupted here, the exit handler waits once more
        if self._thread.is_alive():
            self._abandoned = True
            with self._lock:
                missing = self._records + self._dropped
            self._warn_once(f"{missing} records could not be written within {timeout_s:g} s")
        atexit.unregister(self.close)

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            try:
                if isinstance(item, _Entry):
                    self._write(item)
                elif item.last:
                    with self._lock:
                        self._log.lost_records += self._dropped
                    self._log.close()
                else:
                    item.synced.put(self._log.sync())
            except Exception as error:  # a bad record must not end the records after it
                self._log.lost_records += 1
                self._warn_once("a record cannot be written and is lost", f": {error!r}")
            if isinstance(item, _Mark) and item.last:
                return

    def _write(self, entry: _Entry) -> None:
        with self._lock:
            waiting, waiting_bytes = self._records - 1, self._bytes - entry.size
        crowded = waiting > self._max_records / 2 or waiting_bytes > self._max_bytes / 2
        try:
            self._log.lost_records += entry.lost_before
            if self._abandoned and entry.record.get("kind") == "step":
                self._log.lost_records += 1  # too late for steps; the end event is still written
                return
            if crowded:
                self._warn_once("the disk is slow, steps are written without their counts")
            self._log.write(self._finish(entry.record, not crowded))
        finally:
            with self._lock:
                self._records -= 1
                self._bytes -= entry.size

    def _warn_once(self, what: str, why: str = "") -> None:
        if what not in self._said:
            self._said.add(what)
            _logger.warning("%s: %s%s; training continues", self._log.path, what, why)


def estimated_bytes(value: Any) -> int:
    """Approximate memory of a value, without visiting every number of a matrix."""
    if isinstance(value, array):
        return 64 + value.itemsize * len(value)
    if isinstance(value, str | bytes):
        return 50 + len(value)
    if isinstance(value, Mapping):
        return 64 + sum(100 + estimated_bytes(item) for item in value.values())
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], list | tuple | array | Mapping):
            return 64 + sum(8 + estimated_bytes(item) for item in value)
        return 64 + 40 * len(value)  # a pointer, and a number that it points to
    return 32
