"""CPU time of four processes with a pipeline with and without the probe, in pairs.

    python -m benchmarks.pipeline_overhead [--pairs 40]

As in ``benchmarks.probe_overhead`` the probe is on one of two copies of the model in the first half
of the pairs and on the other in the second; a ratio is the geometric mean of a pair of each.
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
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from benchmarks.machine import options_of
from benchmarks.probe_overhead import LEAST_S, STEPS, interval
from examples.pipeline_loop import Stage, loss_of
from microscope_tui.probe import attach

RANKS, TARGET = 4, 1.01


def seconds_of(stage: Any, schedule: Any, optimizer: Any, tokens: int, probe: Any) -> list[float]:
    """CPU seconds of all processes, and of the clock on average, for ``STEPS`` steps."""
    dist.barrier()
    spent = torch.tensor([-time.process_time(), -time.perf_counter()], dtype=torch.float64)
    for _ in range(STEPS):
        ids = torch.randint(256, (8, tokens // 8))
        inputs = [ids] if stage.is_first else []
        schedule.step(*inputs, target=ids if stage.is_last else None)
        optimizer.step()
        if probe is not None:
            probe.step()
        optimizer.zero_grad()
    spent += torch.tensor([time.process_time(), time.perf_counter()], dtype=torch.float64)
    dist.all_reduce(spent)
    return [float(spent[0]), float(spent[1]) / RANKS]


def run(rank: int, home: str, pairs: int, width: int, tokens: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{home}/meet", rank=rank, world_size=RANKS)
    torch.manual_seed(0)
    module, sides, halves, step_s = Stage(width, rank, RANKS), list[Any](), list[Any](), []
    for one in (module, copy.deepcopy(module)):
        stage = PipelineStage(one, rank, RANKS, torch.device("cpu"))
        optimizer = torch.optim.AdamW(one.parameters(), lr=1e-4)
        sides.append((stage, Schedule1F1B(stage, 8, loss_fn=loss_of), optimizer, tokens))
    for half in (0, 1):
        halves.append([])
        with attach(sides[half][0], Path(home) / f"run-{half}") as probe:
            for pair in range(-2, math.ceil(pairs / 2)):  # two to warm up
                spent = [[0.0, 0.0]] * 2
                for side in (0, 1) if pair % 2 else (1, 0):
                    spent[side] = seconds_of(*sides[side], probe if side == half else None)
                if pair >= 0:
                    halves[half].append(spent[half][0] / spent[1 - half][0])
                    step_s.append(spent[1 - half][1] / STEPS)
    ratios = [math.sqrt(one * other) for one, other in zip(*halves, strict=True)]
    low, high = interval(ratios)
    if rank == 0:
        print(
            f"step {statistics.median(step_s) * 1000:.0f} ms (at least {LEAST_S * 1000:.0f}), CPU "
            f"time: median ratio {statistics.median(ratios):.4f} (95 % interval {low:.4f} to "
            f"{high:.4f}, {len(ratios)} times two pairs of {STEPS} steps; target {TARGET})"
        )


if __name__ == "__main__":
    given = options_of(__doc__, pairs=40, width=128, tokens=1024)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, (folder, given.pairs, given.width, given.tokens), nprocs=RANKS)
