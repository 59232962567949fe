"""A folder that is either complete or not there.

It is written aside, on the same disk, forced to disk and then renamed: whoever looks sees all of it
or nothing, and after an error or Ctrl-C nothing is left.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes ``target`` at the end.

    Raises:
        FileExistsError: If there is something at ``target``.
        OSError: If it cannot be written, or the disk is full.
    """
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists: choose another name, or remove it first.")
    aside = target.parent / f".{target.name}.partial"
    shutil.rmtree(aside, ignore_errors=True)  # what a process that was killed has left
    aside.mkdir()
    try:
        yield aside
        for path in (*aside.iterdir(), aside):
            force_to_disk(path)
        aside.rename(target)
        force_to_disk(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file with the permissions of any new file; ``OSError`` if it fails."""
    path.touch()
    mode = path.stat().st_mode
    try:
        # Transformers 4 refuses a file that does not say what wrote it.
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # what safetensors makes of a full disk
        raise OSError(f"{path.name} cannot be written: {error}") from error
    path.chmod(mode)


def force_to_disk(path: Path) -> None:
    """Return once the file or folder at ``path`` is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
