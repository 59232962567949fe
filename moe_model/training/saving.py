"""From a run to a checkpoint on disk."""

from __future__ import annotations

from pathlib import Path

from moe_model.training.checkpoint import Checkpoints
from moe_model.training.optimizer import optimizer_tensors
from moe_model.training.resume import facts
from moe_model.training.setup import Run


def save_checkpoint(name: str, run: Run, checkpoints: Checkpoints, judgement: bytes | None) -> Path:
    """Write all that ``run`` needs to go on, as ``name``; the path of the link.

    Raises:
        OSError: If it cannot be written; what was there before still holds.
    """
    return checkpoints.save(
        name,
        step=run.progress.step,
        config=run.model.config,
        weights=run.model.state_dict(),
        training_state=optimizer_tensors(run.model, run.optimizer),
        tokenizer=run.corpus.tokenizer,
        judgement=judgement,
        facts=facts(run),
    )
