"""Stops the programs that write to our pipe once we exit.

A shell takes its terminal back only when all programs of a pipeline have ended, and ``tail -F`` may
wait hours for its next line. So each gets SIGPIPE now, as it would at its next write. A program
that ignores the signal (``ssh``, a trainer in Python) is left alone and named.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from microscope_tui.runlog import safe_text

_PROCESSES = Path("/proc")
_WRITABLE = 0o200  # of the link that represents a descriptor


def dismiss_writers(descriptor: int) -> list[str]:
    """Stop the writers of the pipe in our own pipeline; returns the names of the others.

    Without ``/proc`` nothing is done: the writers end with their next line.
    """
    staying = []
    for process in _writers(descriptor):
        with suppress(OSError):  # it has ended, or belongs to another user
            if _ignores_the_signal(process):
                name = safe_text((process / "comm").read_text(errors="replace").strip(), 40)
                staying.append(f"{name} (process {process.name})")
            else:
                os.kill(int(process.name), signal.SIGPIPE)
    return staying


def _writers(descriptor: int) -> Iterator[Path]:
    """Processes of our group that hold the pipe open for writing, by their folders."""
    try:
        pipe = os.readlink(f"/proc/self/fd/{descriptor}")
        processes = sorted(_PROCESSES.iterdir())
    except OSError:
        return
    if not pipe.startswith("pipe:"):
        return
    for process in processes:
        if process.name.isdecimal() and int(process.name) != os.getpid():
            with suppress(OSError):
                if os.getpgid(int(process.name)) == os.getpgrp() and _writes(process, pipe):
                    yield process


def _writes(process: Path, pipe: str) -> bool:
    return any(
        os.readlink(link) == pipe and os.lstat(link).st_mode & _WRITABLE
        for link in (process / "fd").iterdir()
    )


def _ignores_the_signal(process: Path) -> bool:
    for line in (process / "status").read_text(errors="replace").splitlines():
        if line.startswith("SigIgn:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGPIPE - 1) & 1)
    return True  # unknown: leave it alone
