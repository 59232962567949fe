"""Only one process trains a run: two would mix their logs and delete each other's checkpoints."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from moe_model.command import UsageError, say
from moe_model.training.distributed import World

LOCK = ".lock"
_NOT_HERE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def only_training(folder: Path, world: World) -> Iterator[None]:
    """While entered, no other process can train in ``folder``, which is created. A collective.

    The operating system holds the lock and releases it when the process ends, even after a crash.
    If a file system has no locks, a line on the console says so.

    Raises:
        UsageError: On all ranks, if another process trains there.
        OSError: If the folder cannot be made.
    """
    with ExitStack() as stack:
        with world.together():
            if world.is_main and not _take(folder, stack):
                raise UsageError(
                    f"{folder}: another process is training this run: stop it first, or choose "
                    "another --run."
                )
        yield


def _take(folder: Path, stack: ExitStack) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    file = stack.enter_context((folder / LOCK).open("w"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
        say(
            f"train.py: {folder} is on a disk without file locks: make sure that no other process "
            "trains this run."
        )
    return True
