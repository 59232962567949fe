"""A model that is whole on every rank (DDP) or spread over them (FSDP2).

Each rank reads other sequences, and its loss is a share of the mean over the whole step. **So the
gradient of the step is the sum over ranks**: DDP and FSDP, which average, are told to divide
nothing. The routers' bias is a buffer, whole on every rank, and is not synchronised: every rank
computes the same update from the same counts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from moe_model import LanguageModel, ModelOutput
from moe_model.training.world import World

Parallel = Literal["ddp", "fsdp"]

_WITHOUT_BUFFERS: dict[str, Any] = (
    {"forward_sync_buffers": False}
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else {"broadcast_buffers": False}  # before torch 2.13
)


def parallelize(
    model: LanguageModel, kind: Parallel | None, world: World
) -> Callable[..., ModelOutput]:
    """Distribute ``model``; return what to call for a forward pass. Create the optimizer
    afterwards.

    ``model`` now has the weights of rank 0 on every rank, on ``world.device``; with ``fsdp`` its
    parameters are DTensors, of whose rows each rank holds a share.
    """
    if kind is None or not dist.is_initialized():
        return model.to(world.device)
    if kind == "ddp":
        own_gpu = [world.device] if world.device.type == "cuda" else None
        whole_model = model.to(world.device)
        ddp = DistributedDataParallel(whole_model, device_ids=own_gpu, **_WITHOUT_BUFFERS)
        ddp.register_comm_hook(None, lambda _, bucket: _summed(bucket.buffer()))
        return ddp
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
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other
    model.sharded = True
    model.register_forward_hook(_share_again)
    return model


def _summed(gradients: Tensor) -> Any:
    """A future of their sum over all ranks, which DDP leaves as it is."""
    reduction: Any = dist.all_reduce(gradients, async_op=True)
    return reduction.get_future().then(lambda done: done.value()[0])


def _share_again(model: nn.Module, inputs: Any, output: Any) -> None:
    """FSDP keeps the gathered embedding and head for the backward pass: after an evaluation
    ``parameters()`` would still return those instead of the optimizer's."""
    if isinstance(model, FSDPModule) and not torch.is_grad_enabled():
        model.reshard()


def whole_weights(model: LanguageModel, world: World) -> dict[str, Tensor]:
    """The full state dict of ``model`` on the CPU of rank 0; empty on the other ranks. A
    collective; a GPU holds one full tensor at a time."""
    weights = {}
    for name, tensor in model.state_dict().items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if world.is_main:
            weights[name] = full.cpu()
    return weights
