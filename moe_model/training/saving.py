"""Write a checkpoint of a run, also when several processes hold parts of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from moe_model import TRAINING_STATE, WEIGHTS, write_description, write_tensors
from moe_model.training.checkpoint import JUDGEMENT, Checkpoints
from moe_model.training.parallel import whole_weights
from moe_model.training.resume import facts
from moe_model.training.run import Run
from moe_model.training.sharded import optimizer_state, save_shards


def save_checkpoint(name: str, run: Run, checkpoints: Checkpoints, judgement: bytes | None) -> Path:
    """Write everything that ``run`` needs to resume as ``name``; return the path of the link.

    All ranks call this. Rank 0 writes. With a sharded optimizer each rank writes its own part of
    the optimizer state, while the weights are gathered, so that every reader can load the
    checkpoint.

    Raises:
        OSError: On ranks where writing failed; the earlier checkpoints are unchanged.
    """
    state = optimizer_state(run.model, run.optimizer)
    sharded = run.options.parallel == "fsdp"
    if not run.world.is_main:
        if sharded and (folder := run.world.broadcast_text("")):
            save_shards(Path(folder), state, run.world.patient)
            run.world.barrier()
            whole_weights(run.model, run.world)
        return checkpoints.folder / name

    announced = False

    def write(folder: Path) -> None:
        nonlocal announced
        if sharded:
            announced = True
            run.world.broadcast_text(str(folder))
            save_shards(folder, state, run.world.patient)
            run.world.barrier()  # this rank forces the files to disk, the others wait
        else:
            write_tensors(folder / TRAINING_STATE, _on_cpu(state))
        write_tensors(folder / WEIGHTS, _on_cpu(whole_weights(run.model, run.world)))
        _write_the_rest(folder, run, judgement)

    try:
        return checkpoints.save(name, run.progress.step, write)
    finally:
        if sharded and not announced:  # the other ranks wait for the folder, or for an empty text
            run.world.broadcast_text("")


def _write_the_rest(folder: Path, run: Run, judgement: bytes | None) -> None:
    tokenizer = run.corpus.tokenizer
    for file, contents in tokenizer.files.items():
        (folder / file).write_bytes(contents)
    if judgement is not None:
        (folder / JUDGEMENT).write_bytes(judgement)
    write_description(
        folder, run.model.config, run.progress.step, tokenizer=tokenizer.to_dict(), **facts(run)
    )


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
