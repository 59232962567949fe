"""Checkpoints that survive ``kill -9`` at any moment.

A checkpoint is written aside as ``.step-00000500.partial``, forced to disk and then renamed to
``step-00000500``: a folder with that name is complete. ``latest``, ``previous`` and ``best`` are
symbolic links, replaced in one atomic rename, so there is never a moment without a loadable latest.
Steps that no link points to are removed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from moe_model import force_to_disk
from moe_model.fresh_folder import fresh_folder

LATEST = "latest"
PREVIOUS = "previous"
BEST = "best"
COLLAPSE = "collapse"
"""The state in which a router was found collapsed, with ``--on-collapse checkpoint``."""
LINKS = (LATEST, PREVIOUS, BEST)
"""The names from which a run may resume."""
_OWN_NAME = re.compile(r"step-\d{8}(-\d+)?")
JUDGEMENT = "judgement.msgpack"
"""The state of the diagnosis."""


class Checkpoints:
    """The checkpoints of one run, in ``folder``."""

    def __init__(self, folder: Path, resumed_from: Path | None = None) -> None:
        """Create ``folder`` if it is missing; ``OSError`` if that fails.

        ``resumed_from`` is the checkpoint that was read. It becomes ``previous``, not the current
        ``latest``, which may be damaged or belong to a discarded continuation.
        """
        self.folder = folder
        self._before = resumed_from
        self._written: dict[int, Path] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, name: str, step: int, write: Callable[[Path], None]) -> Path:
        """Let ``write`` fill the folder of ``step`` and ``name`` (latest, best …) point to it.

        Two names for one step share its files. The former latest becomes previous.

        Args:
            name: ``LATEST``, ``BEST`` or ``COLLAPSE``.
            step: Optimizer steps completed.
            write: Fills the folder it is given; not called if this step is already saved.

        Raises:
            OSError: If the disk is full or the folder is gone; the links are unchanged.
        """
        target = self._written.get(step)
        if target is None or not target.exists():
            self.folder.mkdir(parents=True, exist_ok=True)  # it may have been deleted
            target = self._free_name(step)
            with fresh_folder(target) as partial:
                write(partial)
            self._written = {step: target}
        if name == LATEST:
            self._keep_previous(target)
        self._point(name, target)
        self._remove_unused()
        return self.folder / name

    def _free_name(self, step: int) -> Path:
        """Drop steps of a discarded continuation: the run was resumed from an earlier step."""
        target = self.folder / f"step-{step:08d}"
        again = 1
        while os.path.lexists(target):
            again += 1
            target = self.folder / f"step-{step:08d}-{again}"
        return target

    def _keep_previous(self, latest: Path) -> None:
        link = self.folder / LATEST
        before, self._before = self._before, None
        if before is None and link.is_symlink():
            before = self.folder / link.readlink()
        inside = before is not None and before.parent.resolve() == self.folder.resolve()
        if before is not None and inside and before.name != latest.name and before.is_dir():
            self._point(PREVIOUS, before)

    def _point(self, name: str, target: Path) -> None:
        aside = self.folder / f".{name}.partial"
        aside.unlink(missing_ok=True)
        aside.symlink_to(target.name)
        aside.rename(self.folder / name)
        force_to_disk(self.folder)

    def _remove_unused(self) -> None:
        links = [path for path in self.folder.iterdir() if path.is_symlink()]
        used = {path.readlink().name for path in links}
        for path in self.folder.glob("step-*"):
            own = _OWN_NAME.fullmatch(path.name) and path.is_dir()
            if own and path.name not in used:
                # Renamed first, then removed: a half-removed folder must not look complete.
                doomed = path.rename(self.folder / f".{path.name}.removed")
                shutil.rmtree(doomed)
        for left in self.folder.glob(".step-*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
