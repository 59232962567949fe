"""Gradient norms of a step over all ranks, without an additional collective."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_model import LanguageModel
from moe_model.training.distributed import World
from moe_model.training.parallel import square_norms


def gradient_squares(model: LanguageModel, world: World) -> Tensor:
    """This rank's contribution to the squared gradient norm of every router, and last to the total.

    fp64, ``(L + 1,)``; the sum over ranks is the squared norm.
    """
    squares_L = square_norms([router.weight.grad for router in model.routers], world)
    squares_P = square_norms([p.grad for p in model.parameters()], world)
    return torch.cat([squares_L, squares_P.sum().unsqueeze(0)])
