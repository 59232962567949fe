"""Write a run log on a thread of its own: the training hands a record over and goes on.

What happens when the disk is slower than the training, or hangs: the training never waits.
Records queue up in memory, bounded in number and in bytes (below). Where they pile up, what is
least missed goes first:

1. While more than half of the queue waits, steps are written without their matrices
   (``tokens_per_expert``, ``expert_bias``); the summaries of every router stay.
2. When the queue is full, new steps are dropped and counted; a ``lost_records`` event stands in
   the gap and says how many.
3. Run records and events have a reserve of their own and are never dropped in favour of steps.

A record that cannot be encoded costs itself and a warning, never the thread. The end of the
program waits a few seconds for the queue to drain, no longer. In a child after ``fork`` there is
no writing thread: everything here then returns at once and writes nothing, the log belongs to the
parent. Neither a KeyboardInterrupt nor a signal handler that logs can leave a lock shut.
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
MATRICES = ("expert_bias", "tokens_per_expert")

MAX_RECORDS = 4096
"""Steps of a small model (6 kB in memory) that wait: minutes of a disk that hangs, in 27 MB."""
MAX_BYTES = 64 * 2**20
"""Nor more than this: 58 routers of 256 experts are 0.27 MB a step, and 250 steps of them wait."""
RESERVE_RECORDS = 256
RESERVE_BYTES = 4 * 2**20
"""What run records and events may use on top, so that even a queue full of steps takes them."""

SYNC_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class _Entry:
    record: Record
    size: int
    lost_before: int


@dataclass(frozen=True, slots=True)
class _Mark:
    """Not a record: everything before it is written when the thread arrives here."""

    last: bool = False
    synced: "queue.SimpleQueue[bool]" = field(default_factory=queue.SimpleQueue)


def without_matrices(record: Record, matrices: bool) -> Record:
    """The record as it is, or without what rule 1 above leaves out."""
    return record if matrices else {k: v for k, v in record.items() if k not in MATRICES}


class BackgroundLog:
    """Encodes and writes on a daemon thread what ``write`` takes over; see the module."""

    def __init__(
        self,
        log: RunLogWriter,
        *,
        finish: Callable[[Record, bool], Record] = without_matrices,
        max_records: int = MAX_RECORDS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Start the thread that writes to ``log``, which from now on is this object's own.

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
        self._records = self._bytes = 0  # waiting, the one that is being written included
        self._dropped = 0  # steps since the last record that found room
        self._late: _Mark | None = None
        self._closing = self._abandoned = False
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="run log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def write(self, record: Record) -> None:
        """Take the record over; never waits. Nobody may change it afterwards."""
        if self._log.is_forked:
            self._log.write(record)  # says so, and writes nothing
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
        """Wait until all that came before is written and forced to disk; ``False`` if it is not.

        A disk that let a sync run into its timeout is not waited for again until it moves.
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
        """Write what waits, and close the log; give up on steps after ``timeout_s``."""
        if self._log.is_forked or self._abandoned:
            return
        if not self._closing:
            self._closing = True
            self._queue.put(_Mark(last=True))
        self._thread.join(timeout_s)  # interrupted here, the end of the program waits once more
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
                self._log.lost_records += 1  # too late for steps; how the run ended still counts
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
    """Roughly what a value holds in memory, without looking at every number of a matrix."""
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
