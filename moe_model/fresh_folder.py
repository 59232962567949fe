"""Write a folder atomically: it is either complete or absent.

It is written under a temporary name on the same disk, forced to disk and then renamed. Readers see
all of it or nothing, and an error or Ctrl-C leaves nothing behind.
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
        FileExistsError: If ``target`` exists.
        OSError: If it cannot be written, or the disk is full.
    """
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists: choose another name, or remove it first.")
    aside = target.parent / f".{target.name}.partial"
    shutil.rmtree(aside, ignore_errors=True)  # left by a killed process
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
        # Transformers 4 rejects a file without this metadata.
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # raised on a full disk
        raise OSError(f"{path.name} cannot be written: {error}") from error
    path.chmod(mode)


def force_to_disk(path: Path) -> None:
    """Force the file or folder at ``path`` to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
