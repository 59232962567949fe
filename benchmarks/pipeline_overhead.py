"""CPU time of four processes with a pipeline with and without the probe, in pairs.

The probe is on one copy of the model in half of the pairs, and on the other in the rest.
"""

import copy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from benchmarks.machine import options_of
from benchmarks.probe_overhead import LEAST_S, STEPS, interval
from examples.pipeline_loop import Stage, loss_of
from microscope_tui.probe import attach

RANKS = 4


def seconds_of(stage: Any, schedule: Any, optimizer: Any, tokens: int, probe: Any) -> float:
    """CPU seconds of a step and process, over ``STEPS`` steps."""
    dist.barrier()
    spent = torch.tensor(-time.process_time(), dtype=torch.float64)
    for _ in range(STEPS):
        ids = torch.randint(256, (8, tokens // 8))
        schedule.step(*([ids] if stage.is_first else []), target=ids if stage.is_last else None)
        optimizer.step()
        if probe is not None:
            probe.step()
        optimizer.zero_grad()
    spent += time.process_time()
    dist.all_reduce(spent)
    return float(spent) / STEPS / RANKS


def run(rank: int, home: str, pairs: int, width: int, tokens: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{home}/meet", rank=rank, world_size=RANKS)
    torch.manual_seed(0)
    module, sides, ratios, plain_s = Stage(width, rank, RANKS), list[Any](), [], []
    for one in (module, copy.deepcopy(module)):
        stage = PipelineStage(one, rank, RANKS, torch.device("cpu"))
        optimizer = torch.optim.AdamW(one.parameters(), lr=1e-4)
        sides.append((stage, Schedule1F1B(stage, 8, loss_fn=loss_of), optimizer, tokens))
    for half in (0, 1):
        with attach(sides[half][0], Path(home) / f"run-{half}") as probe:
            for pair in range(-2, pairs // 2):  # two to warm up
                spent = [0.0, 0.0]
                for side in (0, 1) if pair % 2 else (1, 0):
                    spent[side] = seconds_of(*sides[side], probe if side == half else None)
                if pair >= 0:
                    ratios.append(spent[half] / spent[1 - half])
                    plain_s.append(spent[1 - half])
    low, high = interval(ratios)
    if rank == 0:
        print(
            f"{statistics.median(plain_s) * 1000:.0f} ms of CPU a step and process: median ratio "
            f"{statistics.median(ratios):.4f} (95 % interval {low:.4f} to {high:.4f}; target 1.01 "
            f"from {LEAST_S * 1000:.0f} ms on)"
        )


if __name__ == "__main__":
    given = options_of(__doc__, pairs=40, width=128, tokens=1024)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, (folder, given.pairs, given.width, given.tokens), nprocs=RANKS)
