"""A small MoE that no library has, for tests of the probe itself."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from microscope_tui.probe import Adapter, attach

EXPERTS, TOP_K, WIDTH, VOCABULARY = 6, 2, 8, 50


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH))

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        scores_TE = (x_TD @ self.weight.T).softmax(-1)
        weights_TK, ids_TK = scores_TE.topk(TOP_K, dim=-1)
        return weights_TK, ids_TK


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))

    def forward(self, x_BSD: Tensor) -> Tensor:
        x_TD = x_BSD.flatten(0, 1)
        weights_TK, ids_TK = self.gate(x_TD)
        all_TED = torch.stack([expert(x_TD) for expert in self.experts], dim=1)
        chosen_TKD = all_TED.gather(1, ids_TK.unsqueeze(-1).expand(-1, -1, WIDTH))
        return x_BSD + (chosen_TKD * weights_TK.unsqueeze(-1)).sum(1).view_as(x_BSD)


class Model(nn.Module):
    """Three layers, of which the first is dense."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH), Block(), Block()])

    def forward(self, input_ids: Tensor, attention_mask: Any = None, **more: Any) -> Tensor:
        x_BSD = self.embed(input_ids)
        for layer in self.layers:
            x_BSD = layer(x_BSD)
        return x_BSD


ADAPTER = Adapter(lambda module, args, output: output[1], num_experts=EXPERTS, top_k=TOP_K)
ROUTERS = {"layers.1.gate": ADAPTER, "layers.2.gate": ADAPTER}
PAIRS = 2 * 12 * TOP_K
"""Of ``tokens()``, in every router."""


def tokens(batch: int = 2, length: int = 12, seed: int = 0) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (batch, length), generator=made)


def records(folder: Path, kind: str = "step") -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def one_step(model: nn.Module, folder: Path, *args: Any, **inputs: Any) -> dict[str, Any]:
    with attach(model, folder, routers=ROUTERS if isinstance(model, Model) else None) as probe:
        model(*args, **inputs)
        probe.step()
    (line,) = records(folder)
    return line


@contextmanager
def watched(folder: Path, **options: Any) -> Iterator[tuple[Model, Any]]:
    model = Model()
    with attach(model, folder, **({"routers": ROUTERS} | options)) as probe:
        yield model, probe


def sums(folder: Path) -> list[list[int]]:
    return [[sum(row) for row in line["tokens_per_expert"]] for line in records(folder)]
