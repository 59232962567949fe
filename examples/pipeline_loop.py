"""A pipeline of two stages in a loop of your own.

    torchrun --nproc-per-node 2 examples/pipeline_loop.py

Trains a tiny Mixtral, cut into two stages, on text that comes with Python: no download, no GPU.
"""

import argparse
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from transformers import MixtralConfig, MixtralForCausalLM

from microscope_tui.probe import attach

BATCH, MICRO_BATCHES, LENGTH, LAYERS = 16, 4, 64, 4


class Stage(nn.Module):
    """Some layers of the model; the first stage has the embedding and the last one the head."""

    def __init__(self, model: MixtralForCausalLM, layers: range) -> None:
        super().__init__()
        inner = model.model
        self.embed = inner.embed_tokens if 0 in layers else None
        # Under their numbers in the whole model, these are the depths in the log.
        self.layers = nn.ModuleDict({str(n): inner.layers[n] for n in layers})
        self.rotary = inner.rotary_emb
        is_last = LAYERS - 1 in layers
        self.head = nn.Sequential(inner.norm, model.lm_head) if is_last else None

    def forward(self, x: Tensor) -> Tensor:
        if self.embed is not None:
            x = self.embed(x)
        places = torch.arange(x.shape[1])[None]
        for layer in self.layers.values():
            x = layer(x, position_ids=places, position_embeddings=self.rotary(x, places))
        return x if self.head is None else self.head(x)


def loss_of(logits_BSV: Tensor, ids_BS: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), ids_BS[:, 1:].flatten())


def main() -> None:
    """Train, and print what to open."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--logs", type=Path, default=Path("logs"))
    given = parser.parse_args()

    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=8,
    )  # fmt: skip
    size = LAYERS // ranks
    module = Stage(MixtralForCausalLM(config), range(rank * size, (rank + 1) * size))
    stage = PipelineStage(module, rank, ranks, torch.device("cpu"))
    schedule = Schedule1F1B(stage, MICRO_BATCHES, loss_fn=loss_of)
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
    text = torch.tensor(list("\n".join(topics.values()).encode()))

    run = given.logs / "pipeline-loop"
    with attach(stage, run, start_step=1, planned_steps=given.steps) as probe:
        for _ in range(given.steps):
            starts = torch.randint(len(text) - LENGTH, (BATCH,))
            ids_BS = torch.stack([text[start : start + LENGTH] for start in starts])
            losses: list[Tensor] = []
            schedule.step(
                *([ids_BS] if stage.is_first else []),
                target=ids_BS if stage.is_last else None,
                losses=losses,
            )
            optimizer.step()
            probe.step(loss=torch.stack(losses).mean() if losses else None)  # of the last stage
            optimizer.zero_grad()
    if rank == 0:
        print(f"next: moe-microscope {run}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
