"""A training run: what it is made of, and its progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moe_model.json_types import count, number, shown
from moe_model.model import LanguageModel, ModelOutput
from moe_model.training.batches import Batch, TrainingBatches
from moe_model.training.corpus import Corpus
from moe_model.training.distributed import World
from moe_model.training.options import Options

GIVE_UP_AFTER = 20
"""Steps in a row without a finite gradient after which a run has failed."""


class TrainingFailedError(RuntimeError):
    """The run cannot go on; the message says why and what to do."""


@dataclass(slots=True)
class Progress:
    """The state of the loop that is neither in the model nor in the optimizer."""

    step: int = 0
    """Optimizer steps completed."""
    loss: float = math.nan
    """Training loss of the last step, nats per token."""
    validation_loss: float | None = None
    """Latest held-out loss, nats per token; none before the first evaluation."""
    best_loss: float = math.inf
    """Lowest held-out loss so far, nats per token."""
    tokens_per_s: float = 0.0
    """Of the last step."""
    collapse_index: Sequence[float | None] = ()
    """One per router: 1 healthy, 0 collapsed, none where it has no meaning."""
    bad_steps: int = 0
    """Steps in a row, up to the last one, whose gradient was not finite."""
    saved_step: int | None = None
    """Step of the latest checkpoint."""
    entropy: Sequence[float | None] = ()
    """One per router: how undecided it is about a token, in nats."""
    tokens: int = 0
    """Trained on so far."""
    memory_bytes: int = 0
    """Peak on a GPU, else what the process holds."""

    @classmethod
    def from_dict(cls, saved: dict[str, Any], step: int) -> Progress:
        """Where the run was after ``step``; ``KeyError``, ``TypeError`` or ``ValueError``."""
        loss, known, best = (saved[k] for k in ("loss", "validation_loss", "best_loss"))
        indices = saved["collapse_index"]
        if not isinstance(indices, list):
            raise ValueError(f"collapse_index={shown(indices)}: it must be a list.")
        return cls(
            step=step,
            saved_step=step,
            loss=math.nan if loss is None else number("loss", loss),
            validation_loss=None if known is None else number("validation_loss", known),
            best_loss=math.inf if best is None else number("best_loss", best),
            bad_steps=count("bad_steps", saved["bad_steps"]),
            tokens=count("tokens", saved["tokens"]),
            collapse_index=[
                None if index is None else number("collapse_index", index, 1) for index in indices
            ],
        )

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, ready for JSON: the rest is known again after a step."""
        return {
            "loss": _finite(self.loss),
            "validation_loss": _finite(self.validation_loss),
            "best_loss": _finite(self.best_loss),
            "bad_steps": self.bad_steps,
            "tokens": self.tokens,
            "collapse_index": list(self.collapse_index),
        }

    def advance(self, record: dict[str, Any], collapse_index: Sequence[float | None]) -> None:
        """Take over a completed step from its line of the log.

        Raises:
            TrainingFailedError: After too many steps in a row that were not finite.
        """
        self.step, self.loss = record["step"], record["loss"]
        self.tokens_per_s = record["tokens_per_s"]
        self.tokens += record["tokens"]
        self.memory_bytes = record["memory_bytes"]
        self.entropy = record["router"]["entropy"]
        self.collapse_index = collapse_index
        self.bad_steps = 0 if math.isfinite(record["grad_norm"]) else self.bad_steps + 1
        if self.bad_steps >= GIVE_UP_AFTER:
            raise TrainingFailedError(
                f"the gradient was not finite in {self.bad_steps} steps in a row (the last is step "
                f"{self.step}): start again with a lower --lr."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a run is made of."""

    options: Options
    world: World
    """The processes that train together; often one."""
    device: torch.device
    dtype: torch.dtype
    """Number format of matrix products; weights are fp32."""
    corpus: Corpus
    prompt: str
    """What the sample at the end continues."""
    stop_ids: tuple[int, ...]
    """The tokens that end it."""
    forced_collapse: tuple[int, int] | None
    """Router that is collapsed on purpose, and the first step of it."""
    model: LanguageModel
    forward: Callable[..., ModelOutput]
    """The model as it is called: over all ranks where there are several."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    batches: TrainingBatches
    held_out: Sequence[Batch]
    progress: Progress
    resumed_at_step: int | None
    """First step that is written to a log with a past, or to one whose past is elsewhere."""
    judgement: bytes | None
    """What the diagnosis knew where the run was interrupted."""
    resumed_from: Path | None
    """Folder of the checkpoint that was read."""
    is_newest: bool
    """That checkpoint is the newest of this very run: not so in a fork, or further back."""
    attempt: int
    """How often the run was started, this time included."""
    published: dict[str, Any] | None
    """The ``config.json`` that the model was once imported with, kept for its export."""


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
