"""Checkpoints that survive ``kill -9`` at any moment.

A checkpoint is written aside as ``.step-00000500.partial``, forced to disk and then renamed to
``step-00000500``: a folder with that name is complete. ``latest`` and ``best`` are symbolic links,
replaced in one atomic rename, so there is never a moment without a loadable latest. Steps that no
link points to are removed.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_model.fresh_folder import force_to_disk, fresh_folder, write_tensors
from moe_model.model import LanguageModel
from moe_model.store import TRAINING_STATE, WEIGHTS, write_description
from moe_model.tokenizer import Tokenizer

LATEST = "latest"
BEST = "best"


class Checkpoints:
    """The checkpoints of one run, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        """Make ``folder``; ``FileExistsError`` where it is there already."""
        self.folder = folder
        folder.mkdir(parents=True)

    def save(
        self,
        name: str,
        *,
        step: int,
        model: LanguageModel,
        tokenizer: Tokenizer,
        optimizer: torch.optim.Optimizer,
        batches: torch.Generator,
        facts: dict[str, Any],
    ) -> Path:
        """Write the state after ``step`` and let ``name`` (latest or best) point to it.

        Two names for one step share its files.

        Args:
            name: ``LATEST`` or ``BEST``.
            step: Optimizer steps completed.
            model: Its weights and biases are saved, and its config.
            tokenizer: Saved with them, so that a checkpoint alone can generate text.
            optimizer: Its moments are saved by parameter name.
            batches: The generator that draws batches.
            facts: More entries of ``checkpoint.json``: options, losses.

        Raises:
            OSError: If the disk is full or the folder is gone; the links still hold what they held.
        """
        target = self.folder / f"step-{step:08d}"
        if not target.exists():
            with fresh_folder(target) as partial:
                write_tensors(partial / WEIGHTS, _on_cpu(model.state_dict()))
                state = _optimizer_tensors(model, optimizer)
                state["batches.generator"] = batches.get_state()
                write_tensors(partial / TRAINING_STATE, _on_cpu(state))
                for file, contents in tokenizer.files.items():
                    (partial / file).write_bytes(contents)
                plain = tokenizer.to_dict()
                write_description(partial, model.config, step, tokenizer=plain, **facts)
        self._point(name, target)
        self._remove_unused()
        return self.folder / name

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


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _optimizer_tensors(model: LanguageModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """``optimizer.<parameter name>.<moment>`` for everything the optimizer remembers."""
    return {
        f"optimizer.{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
