"""A step of two ranks with ``--expert-parallel 2`` against one with 1; bytes against the formula.

    python -m benchmarks.expert_parallel [--rounds 12]

The model of ``benchmarks.training``, 8 × 256 tokens a rank, one thread each; median over rounds.
"""

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.machine import machine, options_of
from benchmarks.training import BATCH, CONFIG, LENGTH
from moe_model import LanguageModel, exchange
from moe_model.training.options import Options
from moe_model.training.parallel import parallelize, synchronised
from moe_model.training.step import make_optimizer
from moe_model.training.world import World, join_world
from tests.training.worlds import fork_ranks

RANKS = 2
Step = Callable[[], None]


def step_of(world: World, kind: Any, experts: int) -> Step:
    model = LanguageModel(CONFIG).train()
    forward = parallelize(model, kind, world, experts)
    optimizer = make_optimizer(model, Options(lr=1e-4))
    ids = torch.randint(CONFIG.vocab_size, (BATCH, LENGTH + 1))

    def step() -> None:
        with synchronised(forward, last=True):
            output = forward(ids[:, :-1], targets=[ids[:, 1:]])
            (output.losses[0] / (RANKS * ids[:, 1:].numel())).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def bytes_per_token(step: Step, world: World) -> float:
    plain, sizes = exchange._moved, []

    def counted(rows_PX: torch.Tensor, sent: list[int], *more: Any) -> torch.Tensor:
        sizes.append((sum(sent) - sent[world.rank]) * rows_PX.shape[1] * rows_PX.element_size())
        return plain(rows_PX, sent, *more)

    exchange._moved = counted
    step()
    exchange._moved = plain
    total = torch.tensor(sum(sizes))
    world.sum(total)
    return int(total) / (RANKS * BATCH * LENGTH)


def one_rank(rank: int, rounds: int) -> None:
    torch.set_num_threads(1)
    # There: a row and its weight, back: a row; and their gradients the other way round.
    row = 2 * (2 * CONFIG.hidden_size + 1) * 4 * (1 - 1 / RANKS)
    formula = row * CONFIG.num_experts_per_tok * len(CONFIG.moe_layers)
    with join_world(torch.device("cpu")) as world:
        for kind in ("ddp", "fsdp"):
            steps = [step_of(world, kind, n) for n in (1, RANKS)]
            found, ratios = bytes_per_token(steps[1], world), []
            for _ in range(rounds):
                times = []
                for step in (*steps, world.barrier):
                    world.barrier()
                    times.append(time.perf_counter())
                    step()
                ratios.append((times[2] - times[1]) / (times[1] - times[0]))
            world.say(
                f"{kind}: {statistics.median(ratios):.2f} times as long ({min(ratios):.2f} to "
                f"{max(ratios):.2f}); {found:,.0f} bytes per token, formula {formula:,.0f}"
            )


if __name__ == "__main__":
    print(machine(), f"torch {torch.__version__}, {RANKS} ranks", sep="\n", flush=True)
    for child in fork_ranks(RANKS, partial(one_rank, rounds=options_of(__doc__, rounds=12).rounds)):
        os.waitpid(child, 0)
