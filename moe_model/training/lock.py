"""Only one process trains a run: two would mix their logs and delete each other's checkpoints."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from moe_model import UsageError, say
from moe_model.training.distributed import World

LOCK = ".lock"
_NOT_HERE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def only_training(folder: Path, world: World) -> Iterator[None]:
    """While entered, no other process can train in ``folder``, which is created. A collective.

    A folder in which nothing was saved is removed again, with the parents made for it.

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
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as mine:
        file = mine.enter_context((folder / LOCK).open("w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            say(
                f"train.py: {folder} is on a disk without file locks: make sure that no other "
                "process trains this run."
            )
        mine.callback(_tidy, folder, made)  # before the lock is released
        stack.enter_context(mine.pop_all())
    return True


def _tidy(folder: Path, made: list[Path]) -> None:
    """If ``folder`` holds nothing but the lock, remove it and each empty folder of ``made``."""
    with suppress(OSError):
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            for path in made:
                path.rmdir()
