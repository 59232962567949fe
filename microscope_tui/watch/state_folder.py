"""The user's state folder, ``~/.local/state/moe-microscope`` on Linux: small files for the next
session.

They may be lost any time, are written atomically, readable by their owner only, and as untrusted as
a log.
"""

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

from platformdirs import user_state_path

from microscope_tui.runlog import open_regular_file


def state_folder() -> Path:
    """It may not exist: ``write_whole`` makes it."""
    return user_state_path("moe-microscope", appauthor=False)


def read_small(path: Path, most_bytes: int) -> bytes:
    """The content of ``path``.

    Raises:
        OSError: it cannot be read, or is not a regular file.
        ValueError: it is larger than ``most_bytes``.
    """
    with os.fdopen(open_regular_file(path), "rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"more than {most_bytes:,} bytes")
    return data


def write_whole(path: Path, data: bytes, modified_ns: int | None = None, mode: int = 0o600) -> None:
    """Write ``path`` atomically, with its folder if needed.

    ``modified_ns``: the time of change that it gets, by default now; ``mode``: who may read it.
    ``OSError``: it cannot be written; the previous file is kept.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(file, "wb") as whole:
            os.fchmod(file, mode)
            whole.write(data)
        if modified_ns is not None:
            os.utime(name, ns=(modified_ns, modified_ns))
        os.replace(name, path)
    except OSError:
        with suppress(OSError):
            os.unlink(name)
        raise


def remove_oldest(folder: Path, ours: re.Pattern[str], most: int, kept: str = "") -> None:
    """Keep the newest ``most`` of our files in ``folder``, and delete the others.

    ``ours``: what the names of our files match; ``kept``: the name of a file that stays, however
    old it is. What cannot be removed is tried again the next time.
    """
    with suppress(OSError):
        with os.scandir(folder) as entries:
            found = [e for e in entries if ours.fullmatch(e.name) and e.name != kept]
        files = [e for e in found if e.is_file(follow_symlinks=False)]
        ages = [(e.stat(follow_symlinks=False).st_mtime_ns, e.path) for e in files]
        for _, path in sorted(ages, reverse=True)[most - bool(kept) :]:
            os.unlink(path)
