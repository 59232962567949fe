"""The lock on a run log: of two processes without a common group only one may write it.

It is held on a file beside the log, so that readers never meet it, and ends with the process.
"""

import fcntl
import logging
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from microscope_tui.runlog import safe_text

_logger = logging.getLogger(__name__)

WAIT_S = 10.0
"""For a process that is about to end, as after a restart of a job."""
_POLL_S = 0.1
_held: dict[Path, int | None] = {}
"""Descriptors of the locks of this process, by log; ``None``: it writes without a lock."""


def lock_log(log: Path) -> None:
    """Keep other processes from writing ``log``, whose folder is created, until ``unlock_log``.

    The lock of a process that seems to be gone, or a disk without locks, costs one warning.

    Raises:
        BlockingIOError: another process has written the log for ``WAIT_S``, or lives on this host.
        OSError: the folder cannot be created.
    """
    log = log.resolve()
    log.parent.mkdir(parents=True, exist_ok=True)
    size = _size(log)
    give_up_at = time.monotonic() + WAIT_S
    while log not in _held:
        try:
            _held[log] = _try_to_lock(_file_beside(log))
        except BlockingIOError as error:
            if time.monotonic() < give_up_at:
                time.sleep(_POLL_S)
                continue
            number, _, host = str(error).partition(" ")
            holder = safe_text(f"process {number} on {host}")
            if _lives_here(number, host) or _size(log) > size:
                raise BlockingIOError(
                    f"{log} is written by {holder}: stop it, choose another folder, or give every "
                    "process without a common group its own attach(…, part=)"
                ) from None
            _write_without(log, f"{holder} locks it, and seems to be gone")
        except OSError as error:
            _write_without(log, f"it cannot be locked ({error})")


def unlock_log(log: Path) -> None:
    """Give the lock back; has no effect if this process does not hold it."""
    log = log.resolve()
    file = _held.pop(log, None)
    if file is not None:
        with suppress(OSError):  # a file without a lock is harmless
            _file_beside(log).unlink()
        os.close(file)


def _try_to_lock(path: Path) -> int:
    """``BlockingIOError`` with the text of the holder, if there is one."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(os.pread(file, 200, 0).decode(errors="replace")) from None
        if not os.fstat(file).st_nlink:  # removed by its holder since it was opened
            raise BlockingIOError
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()} {socket.gethostname()}".encode())
    except OSError:
        os.close(file)
        raise
    return file


def _lives_here(number: str, host: str) -> bool:
    if host != socket.gethostname() or not number.isdecimal():
        return False
    try:
        with suppress(PermissionError):  # of another user
            os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _leave_to_parent() -> None:
    """In a fork, for example of a data loader: it would hold the lock after its parent's end."""
    for file in _held.values():
        if file is not None:
            os.close(file)
    _held.clear()


def _file_beside(log: Path) -> Path:
    return log.with_name(f".{log.name}.lock")


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _write_without(log: Path, why: str) -> None:
    _held[log] = None
    _logger.warning("%s: %s; make sure that no other process writes this log", log, why)


os.register_at_fork(after_in_child=_leave_to_parent)
