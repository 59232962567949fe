"""What the probe costs a pipeline: CPU time of four processes with and without it, in pairs.

    python -m benchmarks.pipeline_overhead [--pairs 40] [--width 256] [--tokens 2048]

Every process has a stage of one Mixtral and a copy of it. Both take the same steps, in swapped
order; the probe is on one of them in each half. A ratio is the CPU time of all processes and their
threads with the probe to that without. Quote nothing from a busy machine.
"""

import copy
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from transformers import MixtralConfig, MixtralForCausalLM

from benchmarks.machine import options_of
from benchmarks.probe_overhead import LEAST_S, interval
from microscope_tui.probe import attach
from microscope_tui.probe.still import FIRST

RANKS, LAYERS, MICRO_BATCHES, STEPS = 4, 8, 8, 5
TARGET = 1.01


class Stage(nn.Module):
    def __init__(self, model: Any, rank: int) -> None:
        super().__init__()
        self.embed = model.model.embed_tokens if rank == 0 else None
        numbers = range(2 * rank, 2 * rank + 2)
        self.layers = nn.ModuleDict({str(n): model.model.layers[n] for n in numbers})
        self.rotary = model.model.rotary_emb
        self.head = nn.Sequential(model.model.norm, model.lm_head) if rank == RANKS - 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.embed is None else self.embed(x)
        places = torch.arange(x.shape[1])[None]
        for layer in self.layers.values():
            x = layer(x, position_ids=places, position_embeddings=self.rotary(x, places))
        return x if self.head is None else self.head(x)


class Side:
    def __init__(self, module: nn.Module, rank: int, tokens: int) -> None:
        self.stage = PipelineStage(module, rank, RANKS, torch.device("cpu"))
        self._schedule = Schedule1F1B(self.stage, MICRO_BATCHES, loss_fn=loss_of)
        self._optimizer = torch.optim.SGD(module.parameters(), lr=1e-4)
        self._made, self._shape = torch.Generator(), (MICRO_BATCHES, tokens // MICRO_BATCHES)

    def steps(self, probe: Any) -> tuple[float, float]:
        """CPU and wall seconds of ``STEPS`` steps."""
        dist.barrier()
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(STEPS):
            ids = torch.randint(2048, self._shape, generator=self._made)
            inputs = [ids] if self.stage.is_first else []
            self._schedule.step(*inputs, target=ids if self.stage.is_last else None)
            self._optimizer.step()
            if probe is not None:
                probe.step()
            self._optimizer.zero_grad()
        return time.process_time() - cpu, time.perf_counter() - wall


def loss_of(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())


def run(rank: int, folder: str, pairs: int, width: int, tokens: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS
    )
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=2048, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=LAYERS,
        num_attention_heads=8, num_key_value_heads=4, num_local_experts=8,
    )  # fmt: skip
    module = Stage(MixtralForCausalLM(config), rank)
    sides = [Side(one, rank, tokens) for one in (module, copy.deepcopy(module))]
    ratios, plain_s, walls = list[float](), list[float](), [0.0, 0.0]
    for half, (watched, plain) in enumerate((sides, sides[::-1])):
        with attach(watched.stage, Path(folder) / f"half{half}") as probe:
            for pair in range(-math.ceil(FIRST[-1] / STEPS), math.ceil(pairs / 2)):
                seconds = torch.zeros(2, dtype=torch.float64)
                for which in (0, 1) if pair % 2 else (1, 0):
                    side, its = (plain, None) if which else (watched, probe)
                    seconds[which], walls[which] = side.steps(its)
                dist.all_reduce(seconds)
                if pair >= 0:
                    ratios.append(float(seconds[0] / seconds[1]))
                    plain_s.append(walls[1] / STEPS)
    if rank == 0:
        report(ratios, statistics.median(plain_s))
    dist.destroy_process_group()


def report(ratios: list[float], step_s: float) -> None:
    if step_s < LEAST_S:
        print(f"a step takes {step_s * 1000:.0f} ms: raise --width or --tokens to reach 200 ms")
    low, high = interval(ratios)
    print(
        f"step {step_s * 1000:.0f} ms on {RANKS} processes: median ratio of CPU time "
        f"{statistics.median(ratios):.4f} (95 % interval {low:.4f} to {high:.4f}, {len(ratios)} "
        f"pairs of {STEPS} steps; target {TARGET})"
    )


if __name__ == "__main__":
    given = options_of(__doc__, pairs=40, width=256, tokens=2048)
    with tempfile.TemporaryDirectory() as home:
        mp.spawn(run, (home, given.pairs, given.width, given.tokens), nprocs=RANKS)
