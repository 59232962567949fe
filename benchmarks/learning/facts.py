"""How many facts does a model store? A fact is a key of 4 symbols out of 32, which no other fact
has, and 4 random symbols as its value: 20 bits that can only be memorised."""

import math
from typing import Any

import torch
from torch import Tensor

from benchmarks.learning.training import RECIPE, Examples, losses, train
from moe_model.training.batches import IGNORED


def _recipe(facts: int, exposures: int, batch_size: int) -> dict[str, Any]:
    sizes = {"vocab_size": 32, "intermediate_size": 256, "max_position_embeddings": 8}
    # The first layer is dense, as in DeepSeek-V3: with experts there, too, a mixture stays at
    # chance for thousands of steps, before it has found out that a key is four symbols.
    rates = {"lr": 5e-3, "weight_decay": 0.0, "batch_size": batch_size, "first_k_dense_replace": 1}
    steps = exposures * facts // batch_size
    return RECIPE | sizes | rates | {"facts": facts, "exposures": exposures, "steps": steps}


_SMALL, _LARGE = _recipe(24_576, 60, 256), _recipe(4 * 24_576, 60, 1024)
PLAN = [
    (_SMALL, ("dense", "16", "64"), range(5)),
    (_SMALL, ("2", "4"), range(5)),
    (_LARGE, ("dense", "16", "64"), range(3)),
]


def measure(recipe: dict[str, Any], experts: int, seed: int) -> dict[str, float]:
    facts_N8 = random_facts(recipe["facts"], recipe["vocab_size"], seed)
    examples = shuffled(facts_N8, recipe["exposures"], recipe["batch_size"], seed)
    model = train(recipe, experts, seed, examples)
    nats = losses(model, shuffled(facts_N8, 1, 4096, seed))[3:].mean().item()
    bits = 4 * (math.log2(recipe["vocab_size"]) - nats / math.log(2))
    weights = sum(parameter.numel() for parameter in model.parameters())
    per_weight = bits * len(facts_N8) / weights
    return {"loss": nats, "bits/fact": bits, "weights": weights, "bits/weight": per_weight}


def random_facts(number: int, symbols: int, seed: int) -> Tensor:
    """``(N, 8)``: the four symbols of a key, then those of its value."""
    generator = torch.Generator().manual_seed(seed)
    key_N = torch.randperm(symbols**4, generator=generator)[:number]
    keys_N4 = torch.stack([key_N // symbols**place % symbols for place in range(4)], dim=1)
    values_N4 = torch.randint(symbols, (number, 4), generator=generator)
    return torch.cat((keys_N4, values_N4), dim=1)


def shuffled(facts_N8: Tensor, times: int, batch_size: int, seed: int) -> Examples:
    """All facts, in another order each time; only values are predicted."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(times):
        order_N = torch.randperm(len(facts_N8), generator=generator)
        for batch_B8 in torch.split(facts_N8[order_N], batch_size):
            targets_B7 = batch_B8[:, 1:].clone()
            targets_B7[:, :3] = IGNORED
            yield batch_B8[:, :-1], targets_B7
