"""What ``train.py`` counts of a step, for tests of the model."""

from collections.abc import Sequence
from typing import Any

import torch

from microscope_tui.probe import RoutingCounter
from moe_model import LanguageModel
from moe_model.router import Routing
from moe_model.training.world import World


def counter_of(model: LanguageModel, *micro_batches: Sequence[Routing]) -> RoutingCounter:
    counter = RoutingCounter(model.config, model.routers)
    for routings in micro_batches:
        counter.add(routings)
    counter.all_reduce(World(), torch.zeros(0, dtype=torch.float64))
    return counter


def counted(model: LanguageModel, *micro_batches: Sequence[Routing]) -> dict[str, Any]:
    """The line of that step, with the norm of the routers' gradients."""
    grads = [router.weight.grad for router in model.routers]
    squares = [0.0 if grad is None else grad.square().sum().item() for grad in grads]
    counter = counter_of(model, *micro_batches)
    return counter.record(counter.read(), squares)
