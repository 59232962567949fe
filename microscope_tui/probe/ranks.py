"""The processes that train together: one sum over all of them for every logged step.

Ranks that see the same tokens (tensor-parallel siblings) take part with zeros, so that nothing is
counted twice. So does a rank whose probe has failed, so that no other rank waits for it.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

_SAME_TOKENS = ("tp", "tensor", "tensor_parallel", "tensor_model_parallel", "model")
"""Names of mesh dimensions along which every rank sees the same tokens."""
_T = TypeVar("_T")


class Ranks:
    """The processes of the training; a single one without a process group."""

    def __init__(self, model: nn.Module) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size() if together else 1
        self.rank = dist.get_rank() if together else 0
        self.counts = not _is_sibling(model)
        """Whether its tokens count: not if a rank before it sees the same ones."""
        self._device = torch.device("cpu")
        if together and "nccl" in str(dist.get_backend()):
            self._device = torch.device("cuda", torch.cuda.current_device())
        self.counting = round(float(self.sum(torch.tensor(float(self.counts)))))
        """Ranks that count."""

    def sum(self, values: Tensor) -> Tensor:
        if self.size > 1:
            values = values.to(self._device).contiguous()
            dist.all_reduce(values)
        return values

    def all_gather(self, own: _T) -> list[_T]:
        """``own`` of every rank; every rank must call it."""
        everyone = [own] * self.size
        if self.size > 1:
            dist.all_gather_object(everyone, own)
        return everyone


def _is_sibling(model: nn.Module) -> bool:
    """Another rank counts the same tokens."""
    for parameter in model.parameters():
        mesh = getattr(parameter, "device_mesh", None)
        for dimension, name in enumerate(getattr(mesh, "mesh_dim_names", None) or ()):
            if mesh is not None and name in _SAME_TOKENS and mesh.get_local_rank(dimension) > 0:
                return True
    return False
