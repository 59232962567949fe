"""Exported files: never overwrite an existing one."""

import itertools
import os
import re
from contextlib import suppress
from pathlib import Path

_MAX_STEM = 80
_UNNAMED = "view"


def free_name(folder: Path, stem: str, suffix: str) -> Path:
    """``stem.suffix`` in ``folder``, or the first unused of ``stem-2.suffix`` …

    Args:
        stem: may be any text; only letters, digits, ``.``, ``_`` and ``-`` of it are kept, and
            of a long one its two ends.
        suffix: with its dot.
    """
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip(".-") or _UNNAMED
    if len(stem) > _MAX_STEM:  # names that differ at either end stay different
        stem = f"{stem[: _MAX_STEM // 2]}-{stem[1 - _MAX_STEM // 2 :]}"
    path = folder / f"{stem}{suffix}"
    for number in itertools.count(2):
        if not os.path.lexists(path):  # a link that leads nowhere takes the name as well
            break
        path = folder / f"{stem}-{number}{suffix}"
    return path


def write_new(path: Path, text: str) -> None:
    """Write a new file; a partly written file is removed.

    Raises:
        OSError: it is there already, or cannot be written.
    """
    data = text.encode("utf-8", "replace")
    with open(path, "xb") as file:
        try:
            file.write(data)
            file.flush()
        except OSError:
            with suppress(OSError):
                path.unlink()
            raise
