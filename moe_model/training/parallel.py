"""One model on several ranks: whole on each of them (DDP), or a share on each (FSDP2).

Each rank reads other sequences; gradients meet in the backward pass. Both kinds average them over
the ranks: **a loss that is multiplied by the number of ranks leaves their plain sum**. The routers'
bias is a buffer, whole on every rank, and is not synchronised: every rank computes the same update
from the same counts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from moe_model import LanguageModel, ModelOutput, UsageError
from moe_model.training.distributed import World

Parallel = Literal["ddp", "fsdp"]

_WITHOUT_BUFFERS: dict[str, Any] = (
    {"forward_sync_buffers": False}
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else {"broadcast_buffers": False}  # before torch 2.13
)


def parallelize(
    model: LanguageModel, kind: Parallel | None, world: World
) -> Callable[..., ModelOutput]:
    """Distribute ``model``; return what to call instead of it. Create the optimizer afterwards.

    Keep using ``model`` for everything but the forward pass. It now has the weights of rank 0 on
    every rank, and with ``fsdp`` its parameters are DTensors: each rank holds a share of their
    rows. A process without a launcher gets ``model`` back, whatever ``kind`` is.

    Args:
        model: Of the same shape on every rank. It is moved to ``world.device``, with ``fsdp`` layer
            by layer, so that the device never holds all of it.
        kind: ``ddp`` needs memory for the whole model on every rank, ``fsdp`` communicates more.
        world: The ranks.

    Raises:
        UsageError: If there are several ranks and no kind.
    """
    if kind is None and world.size > 1:
        raise UsageError(
            f"{world.size} processes were started but --parallel is not given: add --parallel ddp, "
            "or --parallel fsdp for a model too large for one of them."
        )
    if kind is None or not dist.is_initialized():
        return model.to(world.device)
    if kind == "ddp":
        own_gpu = [world.device] if world.device.type == "cuda" else None
        whole_model = model.to(world.device)
        return DistributedDataParallel(whole_model, device_ids=own_gpu, **_WITHOUT_BUFFERS)
    for tensor in model.state_dict().values():
        on_device = tensor.to(world.device)
        dist.broadcast(on_device, src=0)
        tensor.copy_(on_device)
    # Without a mesh torch uses the accelerator's, even if this process computes on the CPU.
    mesh = init_device_mesh(world.device.type, (world.size,))
    for layer in (*model.layers, *model.mtp):
        fully_shard(layer, mesh=mesh)
    for layer, following in pairwise(model.layers):
        if isinstance(layer, FSDPModule) and isinstance(following, FSDPModule):
            layer.set_modules_to_forward_prefetch([following])
    fully_shard(model, mesh=mesh)
    model.sharded = True
    model.register_forward_hook(_share_again)
    return model


def _share_again(model: nn.Module, inputs: Any, output: Any) -> None:
    """After a forward pass without a backward pass, free the gathered embedding and head.

    FSDP keeps the weights of the outermost module for the backward pass. After an evaluation
    ``parameters()`` would still return those instead of the optimizer's.
    """
    if isinstance(model, FSDPModule) and not torch.is_grad_enabled():
        model.reshard()


@contextmanager
def synchronised(parallel_model: Callable[..., ModelOutput], last: bool) -> Iterator[None]:
    """Wraps forward **and** backward of a micro-batch: gradients are reduced in the ``last``
    only."""
    if isinstance(parallel_model, DistributedDataParallel) and not last:
        with parallel_model.no_sync():
            yield
        return
    if isinstance(parallel_model, FSDPModule):
        parallel_model.set_requires_gradient_sync(last)
    yield


def square_norms(gradients: Iterable[Tensor | None], world: World) -> Tensor:
    """This rank's contribution to the squared norm of each gradient, fp64: one number per gradient.

    Summed over the ranks they are the squared norms, so they can be added to a reduction that is
    needed anyway. For a sharded gradient every rank contributes its rows, for a replicated one rank
    0 does. A missing gradient counts as zero.
    """
    squares = []
    for gradient in gradients:
        if isinstance(gradient, DTensor):
            squares.append(_square_norm(gradient.to_local()))
        elif gradient is not None and world.is_main:
            squares.append(_square_norm(gradient))
        else:
            squares.append(torch.zeros((), dtype=torch.float64, device=world.device))
    return torch.stack(squares)


def _square_norm(tensor: Tensor) -> Tensor:
    wide = torch.promote_types(tensor.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=wide)
    return norm.double().square()


def whole(tensor: Tensor) -> Tensor:
    """All of ``tensor``; gathering a DTensor is a collective, so all ranks must call this."""
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full


def whole_weights(model: LanguageModel, world: World) -> dict[str, Tensor]:
    """The full state dict of ``model`` on the CPU of rank 0; empty on the other ranks.

    Tensors are gathered one by one, so a GPU holds one full tensor at a time. All ranks must call
    this.
    """
    weights = {}
    for name, tensor in model.state_dict().items():
        full = whole(tensor)
        if world.is_main:
            weights[name] = full.cpu()
    return weights
