"""Append records to a run log; never stop the training that is being logged.

A line is written whole with one ``write``, so a reader sees it torn only while it is being
written or after a crash. A full disk or a vanished folder costs one warning: the writer keeps
trying, and a ``lost_records`` event says how many are missing once the log is writable again.
"""

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

_logger = logging.getLogger("moe_microscope.runlog")


class RunLogWriter:
    """Appends JSON lines to ``path``; a torn last line of an earlier process is cut off first."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` for append and create its folder.

        Raises:
            OSError: the log cannot be created at all (said at the start, not hours later).
        """
        self.path = path
        self.lost_records = 0
        self._warned = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: int | None = self._open()

    def write(self, record: Mapping[str, Any]) -> bool:
        """Append one record; ``False`` if it was lost (counted, and said later in the log)."""
        lines = encode_record(record)
        if self.lost_records:
            missing = {"kind": "event", "event": "lost_records", "time": time.time()}
            missing |= {"step": record.get("step"), "values": {"count": self.lost_records}}
            lines = encode_record(missing) + lines
        try:
            self._append(lines)
        except OSError as error:
            self._lose(error)
            return False
        self.lost_records, self._warned = 0, False
        return True

    def sync(self) -> None:
        """Force what was written to the disk; failing to do so is a warning, not an error."""
        if self._file is not None:
            try:
                os.fsync(self._file)
            except OSError as error:
                _logger.warning("%s: could not be synced to disk: %s", self.path, error)

    def close(self) -> None:
        """Sync and close; a later ``write`` opens the log again."""
        if self._file is not None:
            self.sync()
            os.close(self._file)
            self._file = None

    def _open(self) -> int:
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        _cut_torn_tail(file)
        return file

    def _append(self, lines: bytes) -> None:
        if self._file is not None and not self.path.exists():
            os.close(self._file)  # the folder vanished: writing on would feed a deleted file
            self._file = None
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
        written = os.write(self._file, lines)
        if written < len(lines):  # a disk that is almost full takes half a line: undo it
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(f"only {written} of {len(lines)} bytes fitted on the disk")

    def _lose(self, error: OSError) -> None:
        self.lost_records += 1
        if not self._warned:
            self._warned = True
            _logger.warning(
                "%s: cannot be written (%s); training goes on, lost records are counted",
                self.path,
                error,
            )


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
