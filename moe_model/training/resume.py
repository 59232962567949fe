"""Resuming: find the checkpoint, check it, restore its state.

A resumed run equals one that never stopped: same weights, moments, bias, data position and loss
scale, and every random number is a function of seed and step (``step.seed_step``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from moe_model import (
    DESCRIPTION,
    Checkpoint,
    CheckpointError,
    ModelConfig,
    UsageError,
    count,
    number,
    read_checkpoint,
    read_plain_description,
)
from moe_model.training.checkpoint import (
    LATEST,
    LINKS,
    has_training_state,
    load_shards,
    optimizer_state,
)
from moe_model.training.distributed import World
from moe_model.training.options import Options
from moe_model.training.run import Progress, Run

AUTO = "auto"
MOST_LOSS_SCALE = 2.0**127
"""Just below the largest fp32 number."""
_MAY_CHANGE = {
    "capacity_factor", "drop_policy", "router_jitter_noise", "max_position_embeddings",
    "rope_scaling", "routed_scaling_factor", "num_experts_per_tok", "initializer_range",
}  # fmt: skip
"""Fields of a model that its weights do not depend on."""


def candidates(resume: str, run: str | None, checkpoint_dir: Path) -> list[Path]:
    """The checkpoints from which ``--resume`` may continue, newest first.

    ``resume`` is ``auto``, the folder of a run, or one checkpoint. For ``latest``, the checkpoints
    that can replace it are candidates too.
    """
    folder = Path(resume)
    if resume == AUTO:
        folder = checkpoint_dir / (run or "")
    elif folder.name == LATEST and folder.is_symlink():
        folder = folder.parent
    elif (folder / DESCRIPTION).is_file():
        return [folder]
    links = [folder / name for name in LINKS if (folder / name).is_dir()]
    different = {link.resolve(): link for link in reversed(links)}  # latest is often best as well
    return sorted(reversed(different.values()), key=_age, reverse=True)


def _age(checkpoint: Path) -> tuple[float, float]:
    """Which attempt of the run wrote it, and at which step: an attempt may begin further back."""
    try:
        plain = read_plain_description(checkpoint)
    except CheckpointError:
        return math.inf, math.inf  # first, so that loading it reports what is wrong
    attempt = plain.get("life", 1)
    return attempt if isinstance(attempt, int) else math.inf, plain["step"]


def described(
    resume: str, run: str | None, checkpoint_dir: Path
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The :func:`candidates` whose description is sound, with it; loading reports the others."""
    for path in candidates(resume, run, checkpoint_dir):
        with contextlib.suppress(ValueError, KeyError, OverflowError):
            plain = read_plain_description(path)
            ModelConfig.from_dict(plain["model"])
            if isinstance(plain.setdefault("options", {}), dict):
                yield path, plain


def newest_before(folder: Path, step: int) -> tuple[Path, int] | None:
    """The newest checkpoint in ``folder`` that is older than ``step``, and its own step."""
    found = ((path, plain["step"]) for path, plain in described(str(folder), None, folder))
    return next(((path, at) for path, at in found if 0 < at < step), None)


def find_checkpoint(options: Options, world: World) -> Checkpoint | None:
    """The newest intact checkpoint for ``--resume``; ``None`` if a new run starts; ``UsageError``
    if ``--resume`` names nothing, ``CheckpointError`` if every checkpoint is damaged."""
    if options.resume is None:
        return None
    found = candidates(options.resume, options.run, options.checkpoint_dir)
    own = options.checkpoint_dir / options.run
    for name in LINKS:
        if (own / name).is_symlink() and not (own / name).exists():
            world.say(f"{own / name} points to a checkpoint that no longer exists.")
    if not found and options.resume == AUTO and (options.log_dir / options.run).exists():
        world.say(f"no checkpoint in {own}: {options.run} starts at step 1.")
    if not found and options.resume != AUTO:
        raise UsageError(
            f"--resume {options.resume}: no checkpoint found: name one, such as "
            f"{options.checkpoint_dir}/RUN, or omit --resume."
        )
    for place, path in enumerate(found):
        try:
            checkpoint = read_checkpoint(path)
            if has_training_state(checkpoint.folder):
                read_state(checkpoint)
            return checkpoint
        except CheckpointError as error:
            if place + 1 == len(found):
                raise
            world.say(f"{path} is damaged, trying {found[place + 1]}: {error}")
    return None


def is_newest(checkpoint: Checkpoint, options: Options) -> bool:
    """Whether ``--resume auto`` would take it: not for a fork or an earlier step."""
    newest = candidates(AUTO, options.run, options.checkpoint_dir)
    return bool(newest) and newest[0].resolve() == checkpoint.folder


def refuse_other_model(config: ModelConfig, checkpoint: Checkpoint) -> None:
    """Raise ``UsageError`` if the weights do not fit the model that the options describe.

    An imported model may lose or gain depths of multi-token prediction before its first step here.
    """
    may_change = _MAY_CHANGE
    if not has_training_state(checkpoint.folder):
        may_change = _MAY_CHANGE | {"num_nextn_predict_layers"}
    asked, saved = config.to_dict(), checkpoint.config.to_dict()
    for field, value in asked.items():
        if value != saved[field] and field not in may_change:
            raise UsageError(
                f"--model.{field} {value}: the weights in {checkpoint.folder} have {saved[field]}: "
                "omit it, or start without --resume."
            )


def refuse_contradictions(options: Options, checkpoint: Checkpoint) -> None:
    """Raise ``UsageError`` if the command line contradicts the run that is resumed."""
    saved = checkpoint.description.get("options")
    for name in ("preset", "tokenizer", "optimizer"):
        value = getattr(options, name)
        if isinstance(saved, dict) and saved.get(name, value) != value:
            raise UsageError(
                f"--{name} {value}: the checkpoint {checkpoint.folder} was trained with --{name} "
                f"{saved[name]}: omit it, or start without --resume."
            )


class SavedState(NamedTuple):
    """The run's entries in ``checkpoint.json``, validated: the file is not trusted."""

    progress: Progress
    drawn: int
    order: list[Any]
    loss_scale: dict[str, Any]
    sequences_per_step: int


def read_state(checkpoint: Checkpoint) -> SavedState:
    """The state of the run in ``checkpoint``; ``CheckpointError`` if it is invalid."""
    said = checkpoint.description
    try:
        data, scale = said["data"], said["loss_scale"]
        for name in ("scale", "growth_factor", "backoff_factor"):
            if scale and not 0 < number(f"loss_scale.{name}", scale[name]) < MOST_LOSS_SCALE:
                raise ValueError(f"loss_scale.{name}={scale[name]} is out of range")
        for name in ("growth_interval", "_growth_tracker"):
            if scale:
                count(f"loss_scale.{name}", scale[name])
        return SavedState(
            progress=Progress.from_dict(said["progress"], checkpoint.step),
            drawn=count("data.sequences", data["sequences"]),
            order=list(data["order"]),
            loss_scale=dict(scale),
            sequences_per_step=count("sequences_per_step", said["sequences_per_step"]),
        )
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(
            f"{checkpoint.folder} cannot be continued ({error!r}): use another checkpoint."
        ) from error


def restore(run: Run, checkpoint: Checkpoint) -> None:
    """Restore the state of ``checkpoint`` in ``run``, which already has its weights;
    ``CheckpointError`` if it does not fit this model."""
    if not has_training_state(checkpoint.folder):
        run.world.say(
            f"{checkpoint.folder} has weights only (an imported or upcycled model): training "
            "starts from them at step 1."
        )
        return
    saved = read_state(checkpoint)
    progress = saved.progress
    load_shards(checkpoint.folder, optimizer_state(run.model, run.optimizer))
    if run.scaler.is_enabled() and saved.loss_scale:
        run.scaler.load_state_dict(saved.loss_scale)
    if not run.is_newest:
        # No checkpoint under the name of this run holds this state yet.
        progress.saved_step = None
    order = saved.order
    if order != run.data_order or checkpoint.folder.parent != run.folder.resolve():
        progress.best_loss = math.inf  # it was measured on another text, or belongs to another run
    # Multi-token prediction, whose routers come last, may have been enabled now.
    routers = len(run.model.routers)
    progress.collapse_index = [*progress.collapse_index, *[None] * routers][:routers]
    for field in dataclasses.fields(progress):
        setattr(run.progress, field.name, getattr(progress, field.name))
    before, now = saved.sequences_per_step, run.sequences_per_step
    if before != now:
        run.world.say(f"a step now has {now} sequences; it had {before} before.")
    if order == run.data_order:
        run.batches.drawn = saved.drawn
    else:
        run.world.say(
            "the text, --seq-len or --seed differ from the checkpoint: the text is read from "
            "its beginning."
        )
