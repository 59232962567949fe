"""A pipeline of two stages in a loop of your own; no download, no GPU.

torchrun --nproc-per-node 2 examples/pipeline_loop.py
"""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from transformers import MixtralConfig, MixtralForCausalLM

from microscope_tui.probe import attach


class Stage(nn.Module):
    def __init__(self, width: int, rank: int, ranks: int) -> None:
        super().__init__()
        sizes = {"vocab_size": 256, "hidden_size": width, "intermediate_size": 2 * width}
        model = MixtralForCausalLM(MixtralConfig(**sizes, num_hidden_layers=2 * ranks))
        numbers = 2 * rank, 2 * rank + 1
        self.embed = model.model.embed_tokens if rank == 0 else None
        # Under their numbers in the whole model, these are the depths in the log.
        self.layers = nn.ModuleDict({str(n): model.model.layers[n] for n in numbers})
        self.rotary = model.model.rotary_emb
        self.head = nn.Sequential(model.model.norm, model.lm_head) if rank == ranks - 1 else None

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.embed is None else self.embed(x)
        places = torch.arange(x.shape[1])[None]
        for layer in self.layers.values():
            x = layer(x, position_ids=places, position_embeddings=self.rotary(x, places))
        return x if self.head is None else self.head(x)


def loss_of(logits: Tensor, ids: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--logs", type=Path, default=Path("logs"))
    given = parser.parse_args()
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    place = dist.get_rank(), dist.get_world_size()
    stage = PipelineStage(Stage(64, *place), *place, torch.device("cpu"))
    schedule = Schedule1F1B(stage, n_microbatches=4, loss_fn=loss_of)
    optimizer = torch.optim.AdamW(stage.submod.parameters(), lr=2e-3)
    with attach(stage, given.logs / "pipeline-loop", start_step=1) as probe:
        for _ in range(given.steps):
            ids, losses = torch.arange(64) + torch.randint(192, (16, 1)), list[Tensor]()
            inputs = [ids] if stage.is_first else []
            schedule.step(*inputs, target=ids if stage.is_last else None, losses=losses)
            optimizer.step()
            probe.step(loss=torch.stack(losses).mean() if losses else None)  # of the last stage
            optimizer.zero_grad()
    if stage.is_first:
        print(f"next: moe-microscope {given.logs / 'pipeline-loop'}")
    dist.destroy_process_group()
