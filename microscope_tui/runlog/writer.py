"""Appends records to a run log; never stops the training.

A line is written with one ``write``, so that a reader sees it torn only while it is being written
or after a crash. Failures and their effects:

- **A write fails** (disk full, I/O error, read-only, file or folder gone): one warning, and the log
  is reopened at most once a second until it can be written. Steps in between are counted, not
  tried; a ``lost_records`` event in the gap gives their number.
- **Half a line was written**: it is cut off again. If that fails too, the next line starts with a
  newline, so that a torn line costs only itself.
- **The file is deleted, rotated, replaced or emptied**: the log continues in the file that has its
  name now. An empty file gets the run record first; lines of other writers are never cut.
- **fsync** happens only in ``sync`` (at checkpoints) and ``close``: a crash of the program loses
  nothing that was written, a power cut what came after the last checkpoint.
- **After a fork** the log belongs to the process that opened it; the child writes nothing.
"""

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

_logger = logging.getLogger(__name__)

RETRY_S = 1.0
"""Seconds after a failed write before the next attempt; steps in between count as lost."""
QUIET_S = 60.0
"""Seconds between warnings about a disk that keeps failing."""


class RunLogWriter:
    """Appends JSON lines to ``path``; a torn last line of an earlier process is cut off first."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Open ``path`` for append and create its folder.

        Raises:
            OSError: the log cannot be created at all (said at the start, not hours later).
        """
        self.path = path
        self.lost_records = 0
        """Lost records that the log does not report yet."""
        self._clock = clock
        self._owner = os.getpid()
        self._head = b""  # the latest run record: an empty file starts with it again
        self._head_is_due = False
        self._failing = False
        self._retry_at = self._warn_at = -math.inf
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: int | None = None
        self._first = b""  # a newline where the file ends in half a line
        self._open(cut_torn_tail=True)

    @property
    def is_forked(self) -> bool:
        """Whether this is a child of the process that opened the log: it writes nothing."""
        return os.getpid() != self._owner

    def write(self, record: Mapping[str, Any]) -> bool:
        """Append one record; ``False`` if it was lost (counted, and reported later in the log).

        A run record is not lost but owed: it is written before whatever can be written next.
        """
        if self.is_forked:
            self._warn("belongs to the parent process, a fork does not write to it")
            return False
        kind = record.get("kind")
        if kind == "step" and self._failing and self._clock() < self._retry_at:
            self.lost_records += 1
            return False
        line = encode_record(record)
        if kind == "run":
            self._head, self._head_is_due, line = line, True, b""
        written = self._try_to_append(line, record.get("step"))
        if not written and kind != "run":
            self.lost_records += 1
        return written

    def sync(self) -> bool:
        """Sync to disk; a failure is a warning, not an error."""
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
            self._let_go()  # whatever is wrong (a stale handle, a torn line), opening anew finds it
            if not self._failing:
                self._warn(f"cannot be written ({error}); lost records are counted")
            self._failing, self._retry_at = True, self._clock() + RETRY_S
            return False
        self.lost_records, self._failing = 0, False
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
                if (
                    os.fstat(self._file).st_size == size + written
                ):  # no other process wrote in between
                    os.ftruncate(self._file, size)
            raise OSError(f"only {written} of {len(lines)} bytes fitted on the disk")
        self._first, self._head_is_due = b"", False

    def _size_of_open_log(self) -> int:
        """Size of the file at the log's path, opening it if needed."""
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
            self._first = b"\n" if size and os.pread(file, 1, size - 1) != b"\n" else b""
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
    return msgspec.json.encode(_named_non_finite(record)) + b"\n"


def _named_non_finite(value: Any) -> Any:
    """``value`` with NaN and the infinities replaced by their names (msgspec writes null)."""
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _named_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return value if _all_finite(value) else [_named_non_finite(item) for item in value]
    return value


def _all_finite(numbers: Sequence[Any]) -> bool:
    """True for a flat list of finite numbers, at C speed: matrices are most of a line."""
    try:
        return all(map(math.isfinite, numbers))
    except (TypeError, OverflowError):  # a nested list, None, a string or a huge int
        return False


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
