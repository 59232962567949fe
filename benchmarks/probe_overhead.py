"""What the probe costs a step: pairs of runs of steps with and without it, in swapped order.

    python -m benchmarks.probe_overhead [--every 10] [--pairs 60]

One Mixtral and a copy of it, on one batch, whose step takes at least 200 ms. Two copies may differ
by a percent for their places in memory, so the probe is on one of them in the first half and on the
other in the second. A ratio is the geometric mean of a pair of each half. A half has one log, so
that its judgement is past its warm-up. The first looks at gradients are in the warm-up, and what
one costs is printed. Quote nothing from a busy machine.
"""

import copy
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from benchmarks.machine import options_of
from microscope_tui.probe import attach
from microscope_tui.probe.still import FIRST

LEAST_S = 0.2
STEPS = 5
"""At least so many a side: what the log's own thread still writes when one ends is little then."""
TARGETS = {1: 1.02, 10: 1.005}


def main() -> None:
    """Print the ratio of a step with the probe to one without."""
    given = options_of(__doc__, every=1, pairs=60, width=256, tokens=1024)
    model, ids_BS = made(given.width, given.tokens)
    models = [model, copy.deepcopy(model)]
    steps = given.every * math.ceil(STEPS / given.every)
    halves, plain_s = [], []
    for watched, plain in (models, reversed(models)):
        with (
            tempfile.TemporaryDirectory() as folder,
            attach(watched, Path(folder) / "run", every=given.every) as probe,
        ):
            with_probe = side(watched, ids_BS, lambda loss, probe=probe: probe.step(loss=loss))
            without = side(plain, ids_BS, lambda loss: None)
            ratios, seconds = measured(
                [with_probe, without], steps, math.ceil(given.pairs / 2), given.every
            )
        halves.append(ratios)
        plain_s += seconds
    ratios = [math.sqrt(one * other) for one, other in zip(*halves, strict=True)]
    step_s = statistics.median(plain_s)
    if step_s < LEAST_S:
        print(f"a step takes {step_s * 1000:.0f} ms: raise --width or --tokens to reach 200 ms")
    seconds, size = look(model, ids_BS)
    print(f"a look takes {seconds * 1000:.1f} ms and at most {size / 1e6:.2f} MB of memory")
    low, high = interval(ratios)
    target = TARGETS.get(given.every)
    print(
        f"step {step_s * 1000:.0f} ms, every {given.every}: median ratio "
        f"{statistics.median(ratios):.4f} (95 % interval {low:.4f} to {high:.4f}, {len(ratios)} "
        f"times two pairs of {steps} steps{'' if target is None else f'; target {target}'})"
    )


def measured(
    sides: list[Callable[[], None]], steps: int, pairs: int, every: int
) -> tuple[list[float], list[float]]:
    """Ratios of the first side to the second, and seconds of a step of the second."""
    ratios, plain_s = [], []
    for pair in range(-math.ceil(FIRST[-1] * every / steps), pairs):
        seconds = [0.0, 0.0]
        for which in (0, 1) if pair % 2 else (1, 0):
            start = time.perf_counter()
            for _ in range(steps):
                sides[which]()
            seconds[which] = time.perf_counter() - start
        if pair >= 0:
            ratios.append(seconds[0] / seconds[1])
            plain_s.append(seconds[1] / steps)
    return ratios, plain_s


def look(model: Any, ids_BS: torch.Tensor) -> tuple[float, float]:
    """Seconds that a line takes longer with a look than without, and bytes that it holds at once,
    with the samples that are kept."""
    lines = []
    with tempfile.TemporaryDirectory() as folder, attach(model, Path(folder) / "run") as probe:

        def log(loss: Any) -> None:
            with torch.profiler.profile(profile_memory=True) as profile:
                start = time.perf_counter()
                probe.step(loss=loss)
                seconds = time.perf_counter() - start
            sizes = itertools.accumulate(one.self_cpu_memory_usage for one in profile.events())
            lines.append((seconds, max(sizes)))

        step = side(model, ids_BS, log)
        for _ in range(2 * FIRST[-1]):
            step()
        kept = sum(sample.nbytes for sample in probe._looks._kept.values())
    looks, others = (
        [statistics.median(column) for column in zip(*some, strict=True)]
        for some in (lines[FIRST[0] - 1 : FIRST[-1]], lines[FIRST[-1] :])
    )
    return looks[0] - others[0], looks[1] + kept


def interval(ratios: list[float]) -> tuple[float, float]:
    """Of the median, at 95 %: by the ranks that a fair coin leaves, whatever the distribution."""
    ranked, n = sorted(ratios), len(ratios)
    rank = max(0, math.floor((n - 1.96 * math.sqrt(n)) / 2))
    return ranked[rank], ranked[n - 1 - rank]


def side(model: Any, ids_BS: torch.Tensor, then: Callable[[Any], Any]) -> Callable[[], None]:
    """One optimizer step of the model, and what comes after it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        output = model(input_ids=ids_BS, labels=ids_BS)
        output.loss.backward()
        optimizer.step()
        then(output.loss.detach())  # before the gradients go: their norm is part of the line
        optimizer.zero_grad()

    return step


def made(width: int, tokens: int) -> tuple[Any, torch.Tensor]:
    """The model and its batch."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=2048,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        num_local_experts=8,
        output_router_logits=True,
    )
    return MixtralForCausalLM(config), torch.randint(2048, (4, tokens // 4))


if __name__ == "__main__":
    main()
