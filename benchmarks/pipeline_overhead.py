"""CPU time of four processes with a pipeline with and without the probe, in pairs."""

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
from benchmarks.probe_overhead import interval
from examples.pipeline_loop import Stage, loss_of
from microscope_tui.probe import attach

RANKS, STEPS = 4, 5


def seconds_of(stage: Any, schedule: Any, tokens: int, probe: Any) -> float:
    """CPU seconds of all processes for ``STEPS`` steps."""
    dist.barrier()
    spent = torch.tensor(-time.process_time(), dtype=torch.float64)
    for _ in range(STEPS):
        ids = torch.randint(256, (8, tokens // 8))
        inputs = [ids] if stage.is_first else []
        schedule.step(*inputs, target=ids if stage.is_last else None)
        if probe is not None:
            probe.step()
        stage.submod.zero_grad()
    spent += time.process_time()
    dist.all_reduce(spent)
    return float(spent)


def run(rank: int, home: str, pairs: int, width: int, tokens: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{home}/meet", rank=rank, world_size=RANKS)
    torch.manual_seed(0)
    module, sides = Stage(width, rank, RANKS), list[Any]()
    for one in (module, copy.deepcopy(module)):
        stage = PipelineStage(one, rank, RANKS, torch.device("cpu"))
        sides.append((stage, Schedule1F1B(stage, 8, loss_fn=loss_of), tokens))
    ratios = list[float]()
    with attach(sides[0][0], Path(home) / "run") as probe:
        for pair in range(-2, pairs):  # two pairs to warm up
            order = (0, 1) if pair % 2 else (1, 0)
            spent = {side: seconds_of(*sides[side], None if side else probe) for side in order}
            ratios += [spent[0] / spent[1]] if pair >= 0 else []
    if rank == 0:
        low, high = interval(ratios)
        print(f"CPU time × {statistics.median(ratios):.4f} (95 % interval {low:.4f} to {high:.4f})")


if __name__ == "__main__":
    given = options_of(__doc__, pairs=40, width=256, tokens=2048)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, (folder, given.pairs, given.width, given.tokens), nprocs=RANKS)
