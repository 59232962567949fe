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

from moe_model.command import UsageError
from moe_model.model import LanguageModel, ModelOutput
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
    """What to call in place of ``model``; the optimizer is made after this.

    ``model`` stays the one to ask for everything else. From here on it has the weights of rank 0 on
    every rank, and with ``fsdp`` its parameters are DTensors: each rank holds a share of their
    rows. A process that nobody launched needs none of this, whatever ``kind`` says.

    Args:
        model: Of the same shape on every rank. It ends up on ``world.device``, with ``fsdp`` layer
            by layer: coming from the CPU, it need never be whole there.
        kind: ``ddp`` needs memory for all of the model on every rank, ``fsdp`` talks more.
        world: Who takes part.

    Raises:
        UsageError: If there are several ranks and no kind.
    """
    if kind is None and world.size > 1:
        raise UsageError(
            f"{world.size} processes were started for one training and --parallel is not given: "
            "add --parallel ddp, or --parallel fsdp for a model too large for one of them."
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
    # Without a mesh torch takes the accelerator's, also where this process computes on the CPU.
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
    """Without a backward pass, give up the whole embedding and head that a forward pass leaves.

    FSDP keeps the weights of the outermost module for the backward pass. After an evaluation
    ``parameters()`` would still show those, which the optimizer does not know.
    """
    if isinstance(model, FSDPModule) and not torch.is_grad_enabled():
        model.reshard()


@contextmanager
def synchronised(parallel_model: Callable[..., ModelOutput], last: bool) -> Iterator[None]:
    """Around forward **and** backward of a micro-batch: gradients meet in the ``last`` one only."""
    if isinstance(parallel_model, DistributedDataParallel) and not last:
        with parallel_model.no_sync():
            yield
        return
    if isinstance(parallel_model, FSDPModule):
        parallel_model.set_requires_gradient_sync(last)
    yield


def square_norms(gradients: Iterable[Tensor | None], world: World) -> Tensor:
    """What this rank adds to the squared norm of each gradient, fp64: one number a gradient.

    Summed over the ranks they are the squared norms, so they can ride in a sum that is needed
    anyway. Of a shared gradient a rank has some rows and gives their part; what is whole on every
    rank, rank 0 gives. No gradient counts as zero.
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
    """All of ``tensor``: of a DTensor every rank gets the whole, and all of them must ask."""
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full


def whole_weights(model: LanguageModel, world: World) -> dict[str, Tensor]:
    """The state dict of all of ``model`` on the CPU of rank 0, nothing on the others.

    One tensor after the other is put together, so a GPU holds one whole tensor at a time. All ranks
    must ask.
    """
    weights = {}
    for name, tensor in model.state_dict().items():
        full = whole(tensor)
        if world.is_main:
            weights[name] = full.cpu()
    return weights
