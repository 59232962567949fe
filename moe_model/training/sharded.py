"""Sharded tensors on disk: every rank writes its share, any number of ranks can read them.

``torch.distributed.checkpoint`` plans which rank writes and reads which rows. Its default format
uses pickle; its Hugging Face storage writes safetensors, one file per rank, with the position of
the rows in the header. Only that storage is used here, for writing and reading. (While they plan a
save, ranks send each other pickles, as torch sends objects; none reaches a disk.)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from moe_model import CheckpointError, force_to_disk

_SHARDS = "shard-*.safetensors"


def is_sharded(folder: Path) -> bool:
    """Whether :func:`save_shards` wrote to ``folder``."""
    return any(folder.glob(_SHARDS))


def save_shards(
    folder: Path, tensors: Mapping[str, Tensor], ranks: dist.ProcessGroup | None = None
) -> None:
    """Write ``tensors`` from all ranks to the empty ``folder`` and force them to disk.

    All ranks must call this with the same names. Each rank writes its rows of a DTensor; a plain
    tensor is equal on all ranks and written once. Without a process group this process writes all.

    Args:
        folder: Destination.
        tensors: By name.
        ranks: Group that waits for all files; a slow disk may take longer than a step.

    Raises:
        OSError: On every rank, if one of them could not write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    alone = not dist.is_initialized()
    try:
        with _alone_on_purpose():
            save(dict(tensors), storage_writer=writer, process_group=ranks, no_dist=alone)
    except CheckpointException as error:
        raise OSError(f"{folder} cannot be written: {_causes(error)}") from error
    if alone or dist.get_rank() == 0:  # only rank 0: it may rename the folder next
        force_to_disk(folder)


def load_shards(folder: Path, into: Mapping[str, Tensor]) -> None:
    """Fill the tensors of ``into``, plain tensors or DTensors, from ``folder`` by name.

    Every rank reads what it needs. Tensors that are not in ``into`` are not read.

    Raises:
        CheckpointError: If a name, a part of a tensor or a file is missing or has another type.
    """
    reader = HuggingFaceStorageReader(str(folder))
    try:
        found = reader.read_metadata().state_dict_metadata
        for name, tensor in into.items():
            _refuse_other(folder, name, tensor, found.get(name))
        with _alone_on_purpose(), torch.no_grad():
            load(dict(into), storage_reader=reader, no_dist=True)
    except CheckpointError:
        raise
    except (CheckpointException, Exception) as error:  # a damaged file can raise anything
        causes = _causes(error) if isinstance(error, CheckpointException) else repr(error)
        raise CheckpointError(
            f"{folder} cannot be read ({causes}): use another checkpoint."
        ) from error


def _refuse_other(folder: Path, name: str, tensor: Tensor, found: object) -> None:
    """Raise ``CheckpointError`` if ``found`` does not cover all of ``tensor``.

    The reader would silently leave missing rows unchanged, and convert types.
    """
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


def _causes(error: CheckpointException) -> str:
    return "; ".join(f"rank {rank}: {cause!r}" for rank, (cause, _) in error.failures.items())


@contextmanager
def _alone_on_purpose() -> Iterator[None]:
    """Suppress the warning about running without a process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


@torch.no_grad()
def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of the optimizer as ``optimizer.<parameter name>.<its name in torch>``.

    The tensors themselves, not copies: the next step uses what is written into them. Before the
    first step they are created here, as the first step would create them.

    Raises:
        ValueError: If a parameter is not one of the optimizer's.
    """
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
    named = dict(model.named_parameters())
    strange = [name for name, parameter in named.items() if parameter not in optimizer.state]
    if strange:
        raise ValueError(
            f"{len(strange)} parameters, such as {strange[0]}, are not the optimizer's: make it "
            "after parallelize()."
        )
    return {
        f"optimizer.{name}.{key}": value
        for name, parameter in named.items()
        for key, value in optimizer.state[parameter].items()
    }
