"""Checkpoints that survive ``kill -9`` at any moment.

A checkpoint is written aside as ``.step-00000500.partial``, forced to disk and then renamed to
``step-00000500``: a folder with that name is complete. ``latest``, ``previous`` and ``best`` are
symbolic links, replaced in one atomic rename, so there is never a moment without a loadable latest.
Steps that no link points to are removed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from moe_model.config import ModelConfig
from moe_model.fresh_folder import force_to_disk, fresh_folder, write_tensors
from moe_model.store import TRAINING_STATE, WEIGHTS, write_description
from moe_model.tokenizer import Tokenizer

LATEST = "latest"
PREVIOUS = "previous"
BEST = "best"
COLLAPSE = "collapse"
"""The state in which a router was found collapsed, with ``--on-collapse checkpoint``."""
LINKS = (LATEST, PREVIOUS, BEST)
"""The names from which a run may go on."""
JUDGEMENT = "judgement.msgpack"
"""What the diagnosis remembers."""


class Checkpoints:
    """The checkpoints of one run, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        """Make ``folder`` where it is not there yet; ``OSError`` where that cannot be."""
        self.folder = folder
        self._written: dict[int, Path] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def save(
        self,
        name: str,
        *,
        step: int,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        training_state: Mapping[str, Tensor],
        tokenizer: Tokenizer,
        judgement: bytes | None,
        facts: Mapping[str, Any],
    ) -> Path:
        """Write the state after ``step`` and let ``name`` (latest, best …) point to it.

        Two names for one step share its files. What was latest becomes previous.

        Args:
            name: ``LATEST``, ``BEST`` or ``COLLAPSE``.
            step: Optimizer steps completed.
            config: Shape of the model.
            weights: Its state dict, biases included.
            training_state: What the optimizer remembers, by name.
            tokenizer: Saved as well, so that a checkpoint alone can generate text.
            judgement: What the diagnosis remembers.
            facts: More entries of ``checkpoint.json``, ready for JSON.

        Raises:
            OSError: If the disk is full or the folder is gone; the links still hold what they held.
        """
        target = self._written.get(step)
        if target is None or not target.exists():
            self.folder.mkdir(parents=True, exist_ok=True)  # somebody may have deleted it
            target = self._free_name(step)
            with fresh_folder(target) as partial:
                write_tensors(partial / WEIGHTS, _on_cpu(weights))
                write_tensors(partial / TRAINING_STATE, _on_cpu(training_state))
                for file, contents in tokenizer.files.items():
                    (partial / file).write_bytes(contents)
                if judgement is not None:
                    (partial / JUDGEMENT).write_bytes(judgement)
                plain = tokenizer.to_dict()
                write_description(partial, config, step, tokenizer=plain, **facts)
            self._written = {step: target}
        if name == LATEST:
            self._keep_previous(target)
        self._point(name, target)
        self._remove_unused()
        return self.folder / name

    def _free_name(self, step: int) -> Path:
        """A run that goes on from an earlier step finds steps of its former future: not its own."""
        target = self.folder / f"step-{step:08d}"
        again = 1
        while os.path.lexists(target):
            again += 1
            target = self.folder / f"step-{step:08d}-{again}"
        return target

    def _keep_previous(self, latest: Path) -> None:
        before = self.folder / LATEST
        if before.is_symlink() and before.readlink().name != latest.name:
            self._point(PREVIOUS, before.readlink())

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
            if path.name not in used:
                # First out of sight, then removed: a half-removed folder must not look complete.
                doomed = path.rename(self.folder / f".{path.name}.removed")
                shutil.rmtree(doomed)
        for left in self.folder.glob(".step-*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
