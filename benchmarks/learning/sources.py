"""Do experts separate sources? Random order-3 Markov sources over one alphabet, each with its own
table, and its own marker before its sequences. The truth is known: an expert can reveal the source
up to the logarithm of their number. Columns L0, L1: the share of it in each layer."""

import math
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from benchmarks.learning.training import RECIPE, Examples, losses, train

_SIZES = {"intermediate_size": 32, "max_position_embeddings": 16, "sources": 8}
_RATES = {"lr": 4e-3, "batch_size": 128, "steps": 1500}
PLAN = [
    (RECIPE | _SIZES | _RATES | {"vocab_size": 8 + symbols}, ("dense", "64", "16", "2"), range(3))
    for symbols in (2, 8)
]


@torch.no_grad()
def measure(recipe: dict[str, Any], experts: int, seed: int) -> dict[str, float]:
    sources, symbols = recipe["sources"], recipe["vocab_size"] - recipe["sources"]
    length = recipe["max_position_embeddings"]
    generator = torch.Generator().manual_seed(seed)
    tables = (2 * torch.randn((sources, *[symbols] * 4), generator=generator)).softmax(dim=-1)
    held_out = next(sequences(tables, 1024, length, generator))
    examples = islice(sequences(tables, recipe["batch_size"], length, generator), recipe["steps"])
    with torch.enable_grad():
        model = train(recipe, experts, seed, examples)
    values = {"loss": losses(model, [held_out]).mean().item()}
    marker_T1 = held_out[0][:, :1].expand_as(held_out[0]).reshape(-1, 1)
    source_TS = (marker_T1 == symbols + torch.arange(sources)).float()
    for layer, routing in enumerate(model(held_out[0]).routings):
        chosen_TE = torch.zeros_like(routing.scores_TE).scatter(1, routing.expert_ids_TK, 1.0)
        values[f"L{layer}"] = mutual_information(source_TS.T @ chosen_TE) / math.log(sources)
    return values


def sequences(tables: Tensor, rows: int, length: int, generator: torch.Generator) -> Examples:
    """Endless batches, the sources in turn: a marker, three random symbols, and what follows from
    ``tables[source, first, second, third]``."""
    sources, symbols = tables.shape[:2]
    source_B = torch.arange(rows) % sources
    while True:
        ids = [symbols + source_B, *torch.randint(symbols, (3, rows), generator=generator)]
        while len(ids) <= length:
            chances_BV = tables[source_B, ids[-3], ids[-2], ids[-1]]
            ids.append(chances_BV.multinomial(1, generator=generator).squeeze(1))
        ids_BN = torch.stack(ids, dim=1)
        yield ids_BN[:, :-1], ids_BN[:, 1:]


def mutual_information(counts_XY: Tensor) -> float:
    """Of row and column, in nats."""
    both_XY = counts_XY.double() / counts_XY.sum()
    apart_XY = both_XY.sum(dim=1, keepdim=True) * both_XY.sum(dim=0)
    return float((both_XY.xlogy(both_XY) - both_XY.xlogy(apart_XY)).sum())
