"""Checkpoints that survive ``kill -9`` at any moment, and how a run resumes from them.

A checkpoint is written aside as ``.step-00000500.partial``, forced to disk and then renamed to
``step-00000500``: a folder with that name is complete. ``latest``, ``previous``, ``best`` and
``kept-…`` are symbolic links, replaced in one atomic rename, so there is always a loadable latest.
Steps that no link points to are removed.

Every rank writes its share of a sharded optimizer, and any number of ranks can read them:
``torch.distributed.checkpoint`` plans who writes and reads which rows. Its default format uses
pickle, its Hugging Face storage safetensors, one file per rank with the position of the rows in the
header. (While they plan a save, ranks send each other pickles; none reaches a disk.)

A resumed run equals one that never stopped: every random number is a function of seed and step
(``step.seed_noise``).
"""

import dataclasses
import math
import os
import re
import shutil
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from moe_model import (
    DESCRIPTION,
    TRAINING_STATE,
    WEIGHTS,
    Checkpoint,
    CheckpointError,
    ModelConfig,
    UsageError,
    force_to_disk,
    fresh_folder,
    read_checkpoint,
    read_plain_description,
    write_description,
    write_tensors,
)
from moe_model.config import MOST, count, fitting, number
from moe_model.training.options import FINAL_SHARE, Options, flag_name
from moe_model.training.parallel import whole_weights
from moe_model.training.run import JUDGEMENT, MOST_LOSS_SCALE, Progress, Run
from moe_model.training.step import learning_rate_at, local_part
from moe_model.training.world import World

LATEST = "latest"
PREVIOUS = "previous"
BEST = "best"
COLLAPSE = "collapse"
"""The state in which a router was found collapsed, with ``--on-collapse checkpoint``."""
LINKS = (LATEST, PREVIOUS, BEST)
"""The names from which a run may resume."""
_OWN_NAME = re.compile(r"step-\d{8}(-\d+)?")

_SHARDS = "shard-*.safetensors"

AUTO = "auto"
MOST_THREADS = 2**16
_MAY_CHANGE = {
    "capacity_factor", "drop_policy", "router_jitter_noise", "max_position_embeddings",
    "rope_scaling", "routed_scaling_factor", "num_experts_per_tok", "initializer_range",
}  # fmt: skip
"""Fields of a model that its weights do not depend on."""


class Checkpoints:
    """The checkpoints of one run, in ``folder``."""

    def __init__(self, folder: Path, resumed_from: Path | None = None, keep: str | None = None):
        """``resumed_from`` becomes ``previous``: the current ``latest`` may be damaged or belong to
        a discarded continuation. ``keep``: the option."""
        self.folder = folder
        self._keep = keep
        self._before = resumed_from
        self._written: dict[int, Path] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, name: str, step: int, write: Callable[[Path], None]) -> None:
        """Let ``write`` fill the folder of ``step``, once for all names, and ``name`` point to it.

        The former latest becomes previous. After an ``OSError`` the links are unchanged.
        """
        target = self._written.get(step)
        if target is None or not target.exists():
            self.folder.mkdir(parents=True, exist_ok=True)  # it may have been deleted
            target = self.folder / f"step-{step:08d}"
            again = 1
            while os.path.lexists(target):  # left by steps that an earlier resume discarded
                again += 1
                target = self.folder / f"step-{step:08d}-{again}"
            with fresh_folder(target) as partial:
                write(partial)
            self._written = {step: target}
        if name == LATEST:
            self._keep_previous(target)
            self._keep_newest(target)
        self._point(name, target)
        self._remove_unused()

    def remove_previous(self) -> None:
        """Make room for the next checkpoint, unless the run starts from it."""
        link = self.folder / PREVIOUS
        if self._before is None or link.resolve() != self._before.resolve():
            link.unlink(missing_ok=True)
            self._remove_unused()

    def _keep_previous(self, latest: Path) -> None:
        link = self.folder / LATEST
        before, self._before = self._before, None
        if before is None and link.is_symlink():
            before = self.folder / link.readlink()
        if before is None or before.parent.resolve() != self.folder.resolve():
            return
        if before.name != latest.name and before.is_dir():
            self._point(PREVIOUS, before)

    def _keep_newest(self, latest: Path) -> None:
        if self._keep is None:
            return
        self._point(latest.name.replace("step", "kept"), latest)
        if self._keep != "all":
            kept = sorted(self.folder.glob("kept-*"), key=lambda link: link.lstat().st_mtime_ns)
            for link in kept[: -int(self._keep)]:
                link.unlink()

    def _point(self, name: str, target: Path) -> None:
        aside = self.folder / ".link.partial"
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


def save_checkpoint(name: str, run: Run, checkpoints: Checkpoints, judgement: bytes | None) -> None:
    """Write everything that ``run`` needs to resume as ``name``.

    All ranks call this. Rank 0 writes. With a sharded optimizer each rank writes its own part of
    the optimizer state, while the weights are gathered, so that every reader can load the
    checkpoint.

    Args:
        judgement: State of the diagnosis; ``None`` if there is none to keep. Only that of rank 0
            counts.

    Raises:
        OSError: On ranks where writing failed; the earlier checkpoints are unchanged.
    """
    state = optimizer_state(run.model, run.optimizer) | _counts(run)
    sharded = run.model.sharded
    if not run.world.is_main:
        if sharded and (folder := run.world.broadcast_text("")):
            save_shards(Path(folder), state, run.world.untimed)
            run.world.barrier()
            whole_weights(run.model, run.world)
        return

    announced = False

    def write(folder: Path) -> None:
        nonlocal announced
        if sharded:
            announced = True
            run.world.broadcast_text(str(folder))
            save_shards(folder, state, run.world.untimed)
            run.world.barrier()  # this rank forces the files to disk, the others wait
        else:
            write_tensors(folder / TRAINING_STATE, _on_cpu(state))
        write_tensors(folder / WEIGHTS, _on_cpu(whole_weights(run.model, run.world)))
        for file, contents in run.tokenizer.files.items():
            (folder / file).write_bytes(contents)
        if judgement is not None:
            (folder / JUDGEMENT).write_bytes(judgement)
        write_description(folder, run.model.config, run.progress.step, **_facts(run))

    try:
        checkpoints.save(name, run.progress.step, write)
    finally:
        if sharded and not announced:  # the other ranks wait for the folder, or for an empty text
            run.world.broadcast_text("")


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _facts(run: Run) -> dict[str, Any]:
    before = run.start.description if run.start else {}
    attempt = before.get("life", 1)
    if not before:
        life = 1
    elif isinstance(attempt, int):
        life = attempt + 1
    else:
        life = 2
    scale = dataclasses.asdict(run.loss_scale) if run.loss_scale else {}
    return {
        "tokenizer": run.tokenizer.to_dict(),
        "options": run.options.to_dict(),
        "stop_ids": list(run.stop_ids),
        "threads": torch.get_num_threads(),
        "progress": run.progress.to_dict(),
        "data": {"order": run.data_order, "sequences": run.batches.drawn},
        "loss_scale": scale,
        "life": life,
        "published": before.get("published"),
    }


def has_training_state(folder: Path) -> bool:
    """Whether the checkpoint in ``folder`` has more than weights; an imported model has not."""
    return (folder / TRAINING_STATE).exists() or any(folder.glob(_SHARDS))


def save_shards(
    folder: Path, tensors: Mapping[str, Tensor], ranks: dist.ProcessGroup | None = None
) -> None:
    """Write ``tensors`` from all ranks to the empty ``folder`` and force them to disk.

    All ranks must call this with the same names. Each rank writes its rows of a DTensor; a plain
    tensor is equal on all ranks and written once. Without a process group this process writes all.
    The group ``ranks`` waits for all files; a slow disk may take longer than a step.

    Raises:
        OSError: On every rank, if one of them could not write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    alone = not dist.is_initialized()
    try:
        # torch warns where there is no process group.
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            save(dict(tensors), storage_writer=writer, process_group=ranks, no_dist=alone)
    except CheckpointException as error:
        raise OSError(f"{folder} cannot be written: {_causes(error)}") from error
    if alone or dist.get_rank() == 0:  # only rank 0: it may rename the folder next
        force_to_disk(folder)


def load_shards(folder: Path, into: Mapping[str, Tensor]) -> None:
    """Fill the tensors of ``into`` from ``folder`` by name; ``CheckpointError`` if a name, a part
    of a tensor or a file is missing or has another type."""
    reader = HuggingFaceStorageReader(str(folder))
    try:
        found = reader.read_metadata().state_dict_metadata
        for name, tensor in into.items():
            _refuse_other(folder, name, tensor, found.get(name))
        with torch.no_grad(), warnings.catch_warnings(action="ignore", category=UserWarning):
            load(dict(into), storage_reader=reader, no_dist=True)
    except CheckpointError:
        raise
    except (CheckpointException, Exception) as error:  # a damaged file can raise anything
        causes = _causes(error) if isinstance(error, CheckpointException) else repr(error)
        raise CheckpointError(
            f"{folder} cannot be read ({causes}): use another checkpoint."
        ) from error


def _refuse_other(folder: Path, name: str, tensor: Tensor, found: object) -> None:
    """The reader would silently leave missing rows unchanged, and convert types."""
    what = "nothing"
    if isinstance(found, TensorStorageMetadata):
        there = sum(chunk.sizes.numel() for chunk in found.chunks)
        complete = there == tensor.numel() and found.size == tensor.shape
        if complete and found.properties.dtype == tensor.dtype:
            return
        what = f"{there} elements of {tuple(found.size)} in {found.properties.dtype}"
    raise CheckpointError(
        f"{folder} has {what} for {name}, which is {tuple(tensor.shape)} in {tensor.dtype}: a "
        "shard is missing or belongs to another model; use another checkpoint."
    )


def refuse_impossible(folder: Path, state: Mapping[str, Tensor]) -> None:
    """``CheckpointError`` with the file and the tensor if this rank's part of ``state``, read from
    ``folder``, has NaN, or negative numbers where squares and counts are."""
    for name, tensor in state.items():
        part = local_part(tensor)
        sound = ~part.isnan()
        if name.endswith((".exp_avg_sq", ".step", "counts_E")):
            sound = part >= 0  # false for NaN, too
        if not sound.all():
            files = [file.name for file in sorted(folder.glob("*.safetensors")) if _has(file, name)]
            raise CheckpointError(
                f"{folder}: {name} in {', '.join(files)} has NaN or negative numbers, which "
                "training cannot write: use another checkpoint."
            )


def _has(file: Path, name: str) -> bool:
    with safe_open(file, framework="pt") as tensors:
        return name in tensors.keys()  # noqa: SIM118


def _causes(error: CheckpointException) -> str:
    return "; ".join(f"rank {rank}: {cause!r}" for rank, (cause, _) in error.failures.items())


@torch.no_grad()
def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of the optimizer as ``optimizer.<parameter name>.<its name in torch>``, created
    where the first step would create it."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if "momentum" in group:  # Muon
                optimizer.state[parameter].setdefault(
                    "momentum_buffer", torch.zeros_like(parameter)
                )
            elif not optimizer.state[parameter]:
                on_device = group["fused"] or group["capturable"]
                optimizer.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device if on_device else "cpu"),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
    return {
        f"optimizer.{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def _counts(run: Run) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in run.model.named_buffers() if "counts_E" in name}


def candidates(resume: str, run: str | None, checkpoint_dir: Path) -> list[Path]:
    """The checkpoints that ``--resume`` may continue, newest first.

    For ``latest`` also its substitutes. Only their descriptions are read, and a damaged one comes
    first, so that loading it reports what is wrong.

    Args:
        resume: Value of the option: ``auto``, a run, or a checkpoint.
        run: Name of the run for ``auto``.
    """
    folder = Path(resume)
    if resume == AUTO:
        folder = checkpoint_dir / (run or "")
    elif folder.name == LATEST and folder.is_symlink():
        folder = folder.parent
    elif (folder / DESCRIPTION).is_file():
        return [folder]
    names = [*LINKS, *(link.name for link in folder.glob("kept-*"))]
    links = [folder / name for name in names if (folder / name).is_dir()]
    different = {link.resolve(): link for link in reversed(links)}  # latest is often best as well
    return sorted(reversed(different.values()), key=_age, reverse=True)


def _age(checkpoint: Path) -> tuple[float, float]:
    """Attempt and step: an attempt may begin further back."""
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
        with suppress(ValueError, KeyError, ArithmeticError):
            plain = read_plain_description(path)
            ModelConfig.from_dict(plain["model"])
            _rate_before(plain)
            yield path, plain


def newest_before(folder: Path, step: int) -> tuple[Path, int] | None:
    """The newest checkpoint in ``folder`` before ``step``, if any, and its own step."""
    found = ((path, plain["step"]) for path, plain in described(str(folder), None, folder))
    return next(((path, at) for path, at in found if 0 < at < step), None)


def find_checkpoint(options: Options, world: World) -> Checkpoint | None:
    """The newest intact checkpoint for ``--resume``; damaged ones are reported and skipped.

    ``None`` without the option, and for ``auto`` if the run has none yet.

    Raises:
        UsageError: If the option names nothing.
        CheckpointError: If all are damaged.
    """
    if options.resume is None:
        return None
    found = candidates(options.resume, options.run, options.checkpoint_dir)
    if not found:
        if options.resume != AUTO:
            raise UsageError(
                f"--resume {options.resume}: no checkpoint found: name one, such as "
                f"{options.checkpoint_dir}/RUN, or omit --resume."
            )
        own = options.checkpoint_dir / options.run
        world.say(f"no checkpoint in {own}: {options.run} starts at step 1.")
    for place, path in enumerate(found):
        try:
            checkpoint = read_checkpoint(path)
            if has_training_state(checkpoint.folder):
                read_progress(checkpoint)
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
    """``UsageError`` unless the weights of ``checkpoint`` fit a model of ``config``.

    Fields without weights may differ, and an imported model may lose or gain depths of multi-token
    prediction at first.
    """
    may_change = _MAY_CHANGE
    if not has_training_state(checkpoint.folder):
        may_change = _MAY_CHANGE | {"num_nextn_predict_layers"}
    saved = checkpoint.config.to_dict()
    for field, value in config.to_dict().items():
        if value != saved[field] and field not in may_change:
            raise UsageError(
                f"--model.{field} {value}: the weights in {checkpoint.folder} have {saved[field]}: "
                "omit it, or start without --resume."
            )


def refuse_contradictions(options: Options, checkpoint: Checkpoint) -> None:
    """``UsageError`` if preset, tokenizer or optimizer differ from those of the checkpoint."""
    saved = checkpoint.description["options"]
    if not has_training_state(checkpoint.folder):
        saved = {"tokenizer": str(checkpoint.folder), **saved}
    elif saved.get("optimizer") == "muon" and _has_adamw_experts(checkpoint.folder):
        # Before version 0.2.0 this was an option, and before that the only way.
        raise UsageError(
            f"the checkpoint {checkpoint.folder} was trained with --optimizer muon and AdamW for "
            "the experts, which is gone: start without --resume."
        )
    for name in ("preset", "tokenizer", "optimizer"):
        value, flag = getattr(options, name), flag_name(name)
        if saved.get(name, value) != value:
            raise UsageError(
                f"{flag} {value}: the checkpoint {checkpoint.folder} was trained with {flag} "
                f"{saved[name]}: omit it, or start without --resume."
            )


def _has_adamw_experts(folder: Path) -> bool:
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            if any(name.endswith("mlp.experts.down_proj.exp_avg") for name in tensors.keys()):  # noqa: SIM118
                return True
    return False


def read_progress(checkpoint: Checkpoint) -> Progress:
    """The state of the loop; ``CheckpointError`` if it, or another entry of the run, is invalid."""
    plain = checkpoint.description
    try:
        count("data.sequences", plain["data"]["sequences"])
        if scale := plain["loss_scale"]:
            for name in ("scale", "growth_factor", "backoff_factor"):
                if not 0 < number(f"loss_scale.{name}", scale[name]) < MOST_LOSS_SCALE:
                    raise ValueError(f"loss_scale.{name}={scale[name]} is out of range")
            for name in ("growth_interval", "_growth_tracker"):
                count(f"loss_scale.{name}", scale[name])
        _rate_before(plain)
        threads = plain.get("threads")
        if threads is not None and not 1 <= count("threads", threads) <= MOST_THREADS:
            raise ValueError(f"threads={threads} is out of range")
        return Progress.from_dict(plain["progress"], checkpoint.step)
    except (ValueError, KeyError, TypeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{checkpoint.folder} cannot be continued ({error!r}): use another checkpoint."
        ) from error


def _rate_before(plain: Mapping[str, Any]) -> float | None:
    """The learning rate of the next step, or of the last, by the options of a description, if it
    has any. ``ValueError`` or ``ArithmeticError`` if they are invalid."""
    saved = plain["options"]
    if None in (saved.get("steps"), saved.get("lr")):
        return None
    kinds = typing.get_type_hints(Options)
    fields: dict[str, Any] = {"min_lr": FINAL_SHARE}
    for name in ("steps", "lr", "lr_schedule", "warmup", "decay", "min_lr"):
        if saved.get(name) is not None:
            fields[name] = fitting(name, saved[name], kinds[name])
            if name != "lr_schedule":
                number(name, fields[name], 1 if name in ("decay", "min_lr") else MOST)
    before = Options(**fields)
    return learning_rate_at(min(plain["step"] + 1, before.steps), before)


def restore(run: Run, checkpoint: Checkpoint) -> None:
    """Restore all but the weights, which the model already has; report what changes.

    ``CheckpointError`` if it does not fit this model. Weights alone start at step 1.
    """
    if not has_training_state(checkpoint.folder):
        run.world.say(
            f"{checkpoint.folder} has weights only (an imported or upcycled model): training "
            "starts from them at step 1."
        )
        return
    progress = read_progress(checkpoint)
    plain = checkpoint.description
    state = optimizer_state(run.model, run.optimizer)
    saved = plain["options"]
    if "balance_scope" in saved:  # else it is from before there were counts
        state |= _counts(run)
    load_shards(checkpoint.folder, state)
    refuse_impossible(checkpoint.folder, state)
    if run.loss_scale is not None and (scale := plain["loss_scale"]):
        for field in dataclasses.fields(run.loss_scale):
            setattr(run.loss_scale, field.name, scale[field.name])
    if not run.is_newest:
        # This run has no checkpoint of this state yet.
        progress.saved_step = None
    same_data = plain["data"].get("order") == run.data_order
    same_mask = saved.get("document_mask", False) == run.options.document_mask
    if not (same_data and same_mask and progress.best_loss == _best_loss(run.folder)):
        progress.best_loss = math.inf  # of another measure, run or continuation
    # Multi-token prediction, whose routers come last, may have been enabled now.
    routers = len(run.model.routers)
    progress.collapse_index = [*progress.collapse_index, *[None] * routers][:routers]
    for field in dataclasses.fields(progress):
        setattr(run.progress, field.name, getattr(progress, field.name))
    step, old_rate = progress.step + 1, _rate_before(plain)
    if step <= run.options.steps and old_rate is not None:
        rate = learning_rate_at(step, run.options)
        if abs(rate - old_rate) > 0.1 * old_rate:
            run.world.say(
                f"the learning rate changes from {old_rate:.3g} to {rate:.3g} at step {step}: see "
                "--lr-schedule."
            )
    if same_data:
        run.batches.drawn = plain["data"]["sequences"]
    else:
        run.world.say(
            "the text, --seq-len or --seed differ from the checkpoint: the text is read from "
            "its beginning."
        )


def _best_loss(folder: Path) -> Any:
    with suppress(CheckpointError, KeyError, TypeError):
        return read_plain_description(folder / BEST)["progress"]["best_loss"]
    return None
