"""A training run: its parts, its progress, and how the run log describes it."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moe_model import FINISHED, Checkpoint, LanguageModel, Tokenizer, shown
from moe_model.command import STOPPED_BY_SIGNAL, STOPPED_ON_COLLAPSE
from moe_model.config import count, number
from moe_model.model import ModelOutput
from moe_model.training.batches import Batch, TrainingBatches
from moe_model.training.machine import DTYPES
from moe_model.training.options import Options, flag_name
from moe_model.training.world import World

ENDINGS = {
    "finished": (FINISHED, "finished"),
    "signal": (STOPPED_BY_SIGNAL, "stopped by a signal"),
    "collapse": (STOPPED_ON_COLLAPSE, "stopped on a collapse"),
}
"""Exit code and words for the reasons to end a run in order."""
JUDGEMENT = "judgement.msgpack"
"""File of a checkpoint with the state of the diagnosis."""
GIVE_UP_AFTER = 20
"""Steps in a row without a finite gradient after which a run has failed."""
MOST_LOSS_SCALE = 2.0**127
"""Just below the largest fp32 number."""


class TrainingFailedError(RuntimeError):
    """The run cannot continue; the message contains the reason and what to do."""


@dataclass(slots=True)
class Progress:
    """The state of the loop that is neither in the model nor in the optimizer."""

    step: int = 0
    """Optimizer steps completed."""
    loss: float = math.nan
    """Training loss of the last step, nats per token."""
    validation_loss: float | None = None
    """Latest held-out loss; none before the first evaluation."""
    best_loss: float = math.inf
    """Lowest held-out loss so far."""
    tokens_per_s: float = 0.0
    collapse_index: Sequence[float | None] = ()
    """One per router: 1 balanced, 0 collapsed, ``None`` if undefined."""
    bad_steps: int = 0
    """Consecutive steps, up to the last one, whose gradient was not finite."""
    saved_step: int | None = None
    """Step of the latest checkpoint."""
    entropy: Sequence[float | None] = ()
    """One per router: entropy of its choice for a token, in nats."""
    tokens: int = 0
    """Tokens trained on so far."""
    memory_bytes: int = 0
    """Peak memory on a GPU, else of the process."""

    @classmethod
    def from_dict(cls, saved: dict[str, Any], step: int) -> Progress:
        """From the result of :meth:`to_dict` in a checkpoint of ``step``, unchecked JSON.

        Raises ``KeyError``, ``TypeError`` or ``ValueError`` if an entry is missing or invalid.
        """
        read = cls(step=step, saved_step=step)
        for name in ("loss", "validation_loss", "best_loss"):
            if saved[name] is not None:
                setattr(read, name, number(name, saved[name]))
        for name in ("bad_steps", "tokens"):
            setattr(read, name, count(name, saved[name]))
        indices = saved["collapse_index"]
        if not isinstance(indices, list):
            raise ValueError(f"collapse_index={shown(indices)}: it must be a list.")
        read.collapse_index = found = [*indices]
        for place, index in enumerate(indices):
            if index is not None:
                found[place] = number("collapse_index", index, 1)
        return read

    def to_dict(self) -> dict[str, Any]:
        """The part a checkpoint keeps; the next step recomputes the rest."""
        return {
            "loss": _finite(self.loss),
            "validation_loss": _finite(self.validation_loss),
            "best_loss": _finite(self.best_loss),
            "bad_steps": self.bad_steps,
            "tokens": self.tokens,
            "collapse_index": list(self.collapse_index),
        }

    def advance(self, record: dict[str, Any], collapse_index: Sequence[float | None]) -> None:
        """Update from the log record of a completed step.

        Args:
            record: The line of the log.
            collapse_index: c of every router; ``None`` where it is not known.

        Raises:
            TrainingFailedError: After too many consecutive steps without a finite gradient.
        """
        self.step = record["step"]
        self.loss = record["loss"]
        self.tokens_per_s = record["tokens_per_s"]
        self.tokens += record["tokens"]
        self.memory_bytes = record["memory_bytes"]
        self.entropy = record["router"].get("entropy", ())
        self.collapse_index = collapse_index
        self.bad_steps = 0 if math.isfinite(record["grad_norm"]) else self.bad_steps + 1
        if self.bad_steps >= GIVE_UP_AFTER:
            raise TrainingFailedError(
                f"the gradient was not finite in {self.bad_steps} consecutive steps (the last is "
                f"step {self.step}): start again with a lower --lr."
            )


@dataclass(slots=True)
class LossScale:
    """Keeps small gradients of fp16 from becoming zero; the fields are those of torch's
    ``GradScaler``, as checkpoints have them.

    It follows the gradient norm of all ranks: torch reduces the infinities that a rank has found
    over the mesh of the first gradient only, with several meshes the scales of ranks would differ.
    """

    scale: float = 2.0**16
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000
    _growth_tracker: int = 0

    def update(self, *, finite: bool) -> None:
        """After each step: whether its gradient norm was ``finite``."""
        self._growth_tracker = self._growth_tracker + 1 if finite else 0
        if not finite:
            self.scale *= self.backoff_factor
        elif self._growth_tracker >= self.growth_interval:
            self._growth_tracker = 0
            if self.scale * self.growth_factor < MOST_LOSS_SCALE:
                self.scale *= self.growth_factor


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    options: Options
    world: World
    """The processes that train together, often one."""
    dtype: torch.dtype
    """Number format of matrix products; weights are fp32."""
    tokenizer: Tokenizer
    text_digest: str
    prompt: str
    """Of the sample at the end."""
    stop_ids: tuple[int, ...]
    """The tokens that end it."""
    forced_collapse: tuple[int, int] | None
    """Index of the router to collapse on purpose, and the first step of the collapse."""
    model: LanguageModel
    forward: Callable[..., ModelOutput]
    """The model, or its distributed wrapper."""
    optimizer: torch.optim.Optimizer
    loss_scale: LossScale | None
    batches: TrainingBatches
    held_out: tuple[tuple[str, Sequence[Batch]], ...]
    """Sources and their sequences."""
    progress: Progress
    resumed_at_step: int | None
    """First step after a resume or fork; ``None`` for a new run."""
    start: Checkpoint | None
    """The checkpoint that was read."""
    is_newest: bool
    """Whether that checkpoint is the newest of this run: false for a fork or an earlier step."""

    @property
    def folder(self) -> Path:
        """Where its checkpoints are."""
        return self.options.checkpoint_dir / self.options.run

    @property
    def resumed_from(self) -> Path | None:
        """The folder of the checkpoint that was read; ``None`` for a new run."""
        return None if self.start is None else self.start.folder

    @property
    def scale(self) -> float:
        """What the loss is multiplied by: 1 except in fp16."""
        return 1.0 if self.loss_scale is None else self.loss_scale.scale

    @property
    def sequences_per_step(self) -> int:
        """Of all ranks and micro-batches together."""
        return self.world.size * self.options.grad_accum * self.options.batch_size

    @property
    def data_order(self) -> list[str | int]:
        """The facts that determine, with the tokenizer, which sequence is the n-th.

        A resumed run reads on where it was if they are equal.
        """
        return [self.text_digest, self.options.seq_len, self.options.seed]


_BALANCE = (
    "bias_update_rate", "seq_aux_weight", "aux_weight", "z_loss_weight", "force_collapse",
)  # fmt: skip
"""Options of the load balancing that the log has under the same names."""


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def describe(run: Run) -> dict[str, Any]:
    """The arguments of a ``RunRecorder``, the state of the diagnosis in the checkpoint included."""
    options = run.options
    config = run.model.config
    judgement = None
    if run.start is not None and (run.start.folder / JUDGEMENT).exists():
        judgement = (run.start.folder / JUDGEMENT).read_bytes()
    return {
        "run": options.run,
        "planned_steps": options.steps,
        "resumed_at_step": run.resumed_at_step,
        "judgement": judgement,
        "profile": options.profile,
        "world_size": run.world.size,
        "expert_parallel_size": options.expert_parallel,
        "counts_every": options.counts_every,
        "model": {
            "name": "deepseek-v3",
            "layers": list(run.model.router_depths),
            "layer_names": layer_names(run.model),
            "num_experts": config.n_routed_experts,
            "top_k": config.num_experts_per_tok,
            "num_shared_experts": config.n_shared_experts,
            "score_function": config.scoring_func,
            "norm_top_k": config.norm_topk_prob,
            "capacity_factor": config.capacity_factor,
            "parameters": config.parameters(),
            "active_parameters": config.active_parameters(),
        },
        "balance": {
            "method": options.balance,
            "update": "sign" if options.balance == "bias" else None,
            **{name: getattr(options, name) for name in _BALANCE},
            "names": {name: flag_name(name) for name in (*_BALANCE, "capacity_factor")},
        },
        "config": {
            **options.to_dict(),
            "device": run.world.device.type,
            "dtype": dtype_name(run.dtype),
            "threads": torch.get_num_threads(),
            "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
            "model": config.to_dict(),
        },
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
    }


def layer_names(model: LanguageModel) -> list[str]:
    """Names of the trained routers as a screen shows them."""
    names = [f"L{depth}" for depth in model.config.moe_layers]
    names += (f"mtp.{number}" for number in range(model.config.num_nextn_predict_layers))
    return names[: len(model.routers)]


def dtype_name(dtype: torch.dtype) -> str:
    """The number format as the command line spells it."""
    return next(name for name, known in DTYPES.items() if known == dtype)
