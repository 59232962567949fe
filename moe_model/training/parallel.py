"""A model that is whole on every rank (DDP) or spread over them (FSDP2).

The loss of a rank is a share of the mean over the whole step. **So the gradient of the step is the
sum over ranks**: DDP and FSDP, which average, divide nothing here. The routers' bias is a buffer,
and not synchronised: every rank computes the same update from the same counts.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from moe_model import Experts, LanguageModel, ModelConfig, UsageError
from moe_model.model import ModelOutput
from moe_model.training.world import World

Parallel = Literal["ddp", "fsdp"]

_WITHOUT_BUFFERS: dict[str, Any] = (
    {"forward_sync_buffers": False}
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else {"broadcast_buffers": False}  # before torch 2.13
)


def parallelize(
    model: LanguageModel, kind: Parallel | None, world: World, expert_parallel: int = 1
) -> Callable[..., ModelOutput]:
    """Distribute ``model``; return what to call for a forward pass. Create the optimizer
    afterwards.

    ``model`` now has the weights of rank 0 on every rank, on ``world.device``; with ``fsdp`` its
    parameters are DTensors, of whose rows each rank holds a share. Neighbouring ranks, as many as
    ``expert_parallel``, share the experts, which are DTensors with both kinds.
    """
    if kind is None or not dist.is_initialized():
        return model.to(world.device)
    for tensor in model.state_dict().values():
        on_device = tensor.to(world.device)
        dist.broadcast(on_device, src=0)
        tensor.copy_(on_device)
    replicas = None
    if expert_parallel > 1:
        mesh = _expert_mesh(world, expert_parallel)
        _share_experts(model, mesh["experts"])
        replicas = mesh["replicas"]
    if kind == "ddp":
        return _replicated(model, world, replicas)
    _shard(model, world, replicas)
    return model


def _expert_mesh(world: World, size: int) -> DeviceMesh:
    """Groups of ``size`` neighbouring ranks that share the experts, and the ranks that hold the
    same ones. A mesh that makes its own groups has torch's time limit, not ours."""
    new_groups: Any = dist.new_subgroups_by_enumeration
    ranks_RN = torch.arange(world.size).view(-1, size)
    groups = [
        new_groups(lists.tolist(), timeout=world.timeout)[0] for lists in (ranks_RN.t(), ranks_RN)
    ]
    names = ("replicas", "experts")
    return DeviceMesh.from_group(groups, world.device.type, ranks_RN, mesh_dim_names=names)


def _share_experts(model: LanguageModel, mesh: DeviceMesh) -> None:
    for experts in all_experts(model):
        experts.group = mesh.get_group()
        for name, whole in list(experts.named_parameters(recurse=False)):
            part = whole.detach().chunk(mesh.size())[mesh.get_local_rank()]
            part = part.to(mesh.device_type, copy=True)
            shared = DTensor.from_local(part, mesh, [Shard(0)])
            setattr(experts, name, nn.Parameter(shared, whole.requires_grad))


def all_experts(model: nn.Module) -> list[Experts]:
    """Those of every layer that has them, multi-token prediction included."""
    return [module for module in model.modules() if isinstance(module, Experts)]


def _replicated(
    model: LanguageModel, world: World, replicas: DeviceMesh | None
) -> DistributedDataParallel:
    own_gpu = [world.device] if world.device.type == "cuda" else None
    shared = [name for name, tensor in model.named_parameters() if isinstance(tensor, DTensor)]
    ignore: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ignore(model, shared)
    model = model.to(world.device)
    model.sharded = bool(shared)
    ddp = DistributedDataParallel(
        model, device_ids=own_gpu, gradient_as_bucket_view=True, **_WITHOUT_BUFFERS
    )
    ddp.register_comm_hook(None, lambda _, bucket: _summed(bucket.buffer()))
    ddp.replicas = replicas  # type: ignore[assignment]  # torch allows modules and tensors
    return ddp


def _shard(model: LanguageModel, world: World, replicas: DeviceMesh | None) -> None:
    # Without a mesh torch uses the accelerator's, even if this process computes on the CPU.
    mesh = init_device_mesh(world.device.type, (world.size,))
    if replicas is not None:
        for experts in all_experts(model):
            # Not by experts, which the other ranks have: a second share of those would be strided.
            fully_shard(experts, mesh=replicas, shard_placement_fn=lambda _: Shard(1))
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


@contextmanager
def synchronised(parallel_model: Callable[..., ModelOutput], last: bool) -> Iterator[None]:
    """Around forward **and** backward: gradients are reduced in the ``last`` micro-batch only."""
    if isinstance(parallel_model, FSDPModule):
        parallel_model.set_requires_gradient_sync(last)
    if not isinstance(parallel_model, DistributedDataParallel):
        yield
        return
    with nullcontext() if last else parallel_model.no_sync():
        yield
    replicas: Any = parallel_model.replicas
    if last and replicas is not None:
        for experts in all_experts(parallel_model):
            for parameter in experts.parameters():
                if parameter.requires_grad:
                    gradient: Any = parameter.grad
                    dist.all_reduce(gradient.to_local(), group=replicas.get_group())


def _summed(gradients: Tensor) -> Any:
    """A future of their sum over all ranks, which DDP leaves as it is."""
    reduction: Any = dist.all_reduce(gradients, async_op=True)
    return reduction.get_future().then(lambda done: done.value()[0])


def refuse_layout(
    config: ModelConfig, kind: Parallel | None, world: World, expert_parallel: int
) -> None:
    """``UsageError`` if the experts cannot be divided evenly among the ranks."""
    experts = config.n_routed_experts
    if world.size % expert_parallel or experts % expert_parallel:
        raise UsageError(
            f"--expert-parallel {expert_parallel} must divide the number of processes, which is "
            f"{world.size}, and of experts, which is {experts}: choose another number, or start "
            "other processes with torchrun."
        )
    replicas = world.size // expert_parallel
    sizes = (config.hidden_size, 2 * config.moe_intermediate_size)
    if expert_parallel > 1 and kind == "fsdp" and any(size % replicas for size in sizes):
        raise UsageError(
            f"--expert-parallel {expert_parallel} with --parallel fsdp divides each expert among "
            f"{replicas} processes, which must divide hidden_size={sizes[0]} and 2 × "
            f"moe_intermediate_size={sizes[1]}: choose another number, or --parallel ddp."
        )


def _share_again(model: nn.Module, inputs: Any, output: Any) -> None:
    """FSDP keeps the gathered embedding and head for the backward pass: after an evaluation
    ``parameters()`` would still return those instead of the optimizer's."""
    if isinstance(model, FSDPModule) and not torch.is_grad_enabled():
        model.reshard()


def whole_weights(model: LanguageModel, world: World) -> dict[str, Tensor]:
    """The full state dict of ``model`` on the CPU of rank 0; empty on the other ranks. A
    collective; a GPU holds one full tensor at a time, of the experts one of each rank."""
    weights = {}
    for name, tensor in model.state_dict().items():
        if world.is_main:
            weights[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
        for place, part in _in_parts(tensor):
            if world.is_main:
                weights[name][place] = part
    return weights


def _in_parts(tensor: Tensor) -> Iterator[tuple[Any, Tensor]]:
    if not isinstance(tensor, DTensor):
        yield ..., tensor
    elif "experts" not in (tensor.device_mesh.mesh_dim_names or ()):
        yield ..., tensor.full_tensor()
    else:
        mine = tensor.to_local()
        for place, one in enumerate(torch.split(mine, 1)):
            of_ranks = DTensor.from_local(one, tensor.device_mesh, tensor.placements)
            yield slice(place, None, len(mine)), of_ranks.full_tensor()
