"""A MoE layer of your own: an adapter returns the experts that its router chose.

    python examples/own_layer.py

Trains two layers written here on text that comes with Python: no download.
"""

import argparse
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

from microscope_tui.probe import Adapter, attach

BATCH, LENGTH, WIDTH, EXPERTS, TOP_K = 16, 32, 64, 8, 2


class Gate(nn.Module):
    """Scores every expert and chooses the best two."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(WIDTH, EXPERTS, bias=False)

    def forward(self, x_TD: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        probs_TE = self.proj(x_TD).softmax(dim=-1)
        weights_TK, ids_TK = probs_TE.topk(TOP_K, dim=-1)
        return probs_TE, {"weights": weights_TK, "experts": ids_TK}


class Layer(nn.Module):
    """A mixture of small experts, all computed and the unchosen ones weighted by zero."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.gate = nn.LayerNorm(WIDTH), Gate()
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))
        self.balance = torch.tensor(0.0)

    def forward(self, x_BSD: Tensor) -> Tensor:
        x_TD = self.norm(x_BSD).flatten(0, 1)
        probs_TE, chosen = self.gate(x_TD)
        weights_TE = torch.zeros_like(probs_TE).scatter(1, chosen["experts"], chosen["weights"])
        # The balancing loss of the Switch Transformer, for this layer alone.
        share_E = (weights_TE > 0).float().mean(dim=0) / TOP_K
        self.balance = EXPERTS * (share_E * probs_TE.mean(dim=0)).sum()
        outputs_ETD = torch.stack([expert(x_TD).relu() for expert in self.experts])
        return x_BSD + torch.einsum("te,etd->td", weights_TE, outputs_ETD).view_as(x_BSD)


class Model(nn.Module):
    """Predicts a byte from the two before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, WIDTH)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, input_ids: Tensor) -> Tensor:
        x_BSD = self.embed(input_ids)
        x_BSD = x_BSD + 0.5 * nn.functional.pad(x_BSD[:, :-1], (0, 0, 1, 0))
        for layer in self.layers:
            x_BSD = layer(x_BSD)
        return self.head(x_BSD)


def chosen_experts(module: nn.Module, args: tuple, output: tuple) -> Tensor:
    """Expert ids ``[T, k]`` of one call of the gate; −1 would be a slot that chose no expert."""
    return output[1]["experts"]


def main() -> None:
    """Train, and print what to open."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--logs", type=Path, default=Path("logs"))
    given = parser.parse_args()

    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    text = torch.tensor(list("\n".join(topics.values()).encode()))
    adapter = Adapter(chosen_experts, num_experts=EXPERTS, top_k=TOP_K)
    routers = {f"layers.{depth}.gate": adapter for depth in range(len(model.layers))}

    run = given.logs / "own-layer"
    with attach(model, run, routers=routers, start_step=1, planned_steps=given.steps) as probe:
        for _ in range(given.steps):
            starts = torch.randint(len(text) - LENGTH - 1, (BATCH,))
            ids_BS = torch.stack([text[start : start + LENGTH + 1] for start in starts])
            logits_BSV = model(ids_BS[:, :-1])
            loss = nn.functional.cross_entropy(logits_BSV.flatten(0, 1), ids_BS[:, 1:].flatten())
            balance = torch.stack([layer.balance for layer in model.layers]).mean()
            (loss + 0.02 * balance).backward()
            optimizer.step()
            probe.step(loss=loss, losses={"aux": balance})
            optimizer.zero_grad()
    print(f"next: moe-microscope {run}")


if __name__ == "__main__":
    main()
