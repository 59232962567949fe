"""What it costs a training to record and to judge every step.

    python -m benchmarks.recording [--preset tiny|small] [--pairs 40]

First ``RunRecorder`` alone on invented healthy steps: time on the training thread, and processor
time of the writing thread too. Then real training steps of a preset in one process, five with and
five without the log in turn, so that a slow moment of the machine counts for both. A step varies
by more than the log costs: the calls timed by themselves are the exact number, the difference
says that nothing is hidden elsewhere (the writing thread takes a core while others compute).
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from microscope_tui.probe import RunRecorder, UnfailingLog
from microscope_tui.scenarios import draw_counts
from moe_model.training import Options, World, prepare, resolve
from train import optimizer_step

SIZES = ((5, 8, 2), (7, 16, 4), (58, 256, 8))
"""Routers, experts and choices per token: of the presets tiny, small and deepseek-v3."""
TOKENS = 8192
READINGS = (
    *("entropy", "mean_entropy", "z_loss", "max_logit", "grad_norm", "selected_mass"),
    "margin",
)
TURN, WARM_UP_STEPS = 5, 5
RESAMPLES = 2000
PAUSE_S = 0.02
"""Between steps of the recorder alone: a training computes then, and the writing thread writes."""


def recorder(folder: Path, routers: int, experts: int, top_k: int, **changes: Any) -> RunRecorder:
    """A recorder of a model of this size."""
    layers = list(range(1, routers + 1))
    return RunRecorder(
        folder,
        run="recording",
        planned_steps=100_000,
        model={"layers": layers, "num_experts": experts, "top_k": top_k},
        balance={"method": "bias", "bias_update_rate": 0.001},
        **changes,
    )


def healthy_steps(routers: int, experts: int, top_k: int, number: int) -> list[dict[str, Any]]:
    """Records as a trainer hands them over, of an even load and its noise."""
    rng = random.Random(0)
    spread = [1.0 + 0.2 * rng.random() for _ in range(experts)]
    return [
        {
            "step": step,
            "loss": 2.0 + rng.random() / 10,
            "tokens": TOKENS,
            "tokens_per_expert": [draw_counts(spread, TOKENS, top_k, rng) for _ in range(routers)],
            "expert_bias": [[rng.gauss(0, 0.1) for _ in range(experts)] for _ in range(routers)],
            "router": {name: [1.0 + rng.random() for _ in range(routers)] for name in READINGS},
            "grad_norm": 1.0 + rng.random() / 10,
            "learning_rate": 1e-3,
        }
        for step in range(1, number + 1)
    ]


def alone(folder: Path, size: tuple[int, int, int], steps: int, **changes: Any) -> list[float]:
    """Milliseconds a step: median, 95th percentile, and processor time of all threads."""
    records = healthy_steps(*size, steps)
    log = recorder(folder, *size, **changes)
    times = []
    processor = time.process_time()
    for record in records:
        started = time.perf_counter()
        log.record_step(**record)
        times.append(time.perf_counter() - started)
        time.sleep(PAUSE_S)
    log.sync()  # what waits is written first
    processor = time.process_time() - processor
    log.close(step=steps, reason="finished")
    usual = statistics.quantiles(times, n=20)
    return [1e3 * statistics.median(times), 1e3 * usual[-1], 1e3 * processor / steps]


def in_pairs(folder: Path, preset: str, pairs: int) -> tuple[list[float], ...]:
    """Seconds a step: of every turn with the log, of those without, of the calls by themselves."""
    steps = WARM_UP_STEPS + 2 * TURN * pairs
    options = resolve(
        Options(
            preset=preset,
            run="recording",
            steps=steps,
            log_dir=folder / "logs",
            checkpoint_dir=folder / "checkpoints",
        )
    )
    run = prepare(options, World())
    config = run.model.config
    sizes = (len(config.router_depths), config.n_routed_experts, config.num_experts_per_tok)
    log = UnfailingLog(recorder(folder / "log", *sizes), fail)
    step, calls = 0, list[float]()

    def turn(recorded: bool, length: int) -> float:
        nonlocal step
        started = time.perf_counter()
        for _ in range(length):
            step += 1
            record = optimizer_step(run, step)
            if recorded:
                called = time.perf_counter()
                log.step(record)
                log.alerts()
                calls.append(time.perf_counter() - called)
        return (time.perf_counter() - started) / length

    turn(True, WARM_UP_STEPS)
    times: dict[bool, list[float]] = {True: [], False: []}
    for pair in range(pairs):
        for recorded in (True, False) if pair % 2 else (False, True):
            times[recorded].append(turn(recorded, TURN))
    log.end(step, "finished")
    return times[True], times[False], calls[WARM_UP_STEPS:]


def fail(message: str) -> None:
    """A log with gaps measures nothing."""
    raise SystemExit(message)


def spread(values: list[float], of: Callable[[list[float]], float]) -> tuple[float, float]:
    """Between what ``of`` lies with 95 % confidence, by resampling."""
    rng = random.Random(0)
    drawn = sorted(of(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return drawn[RESAMPLES // 40], drawn[-RESAMPLES // 40]


def main() -> int:
    """Measure and print two Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=["tiny", "small"], default="tiny")
    parser.add_argument("--pairs", type=int, default=40, help=f"turns of {TURN} steps; 0 for none")
    parser.add_argument("--steps", type=int, default=400, help="of the recorder alone")
    asked = parser.parse_args()
    print(f"{machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(
        "| routers × experts | training thread, median | 95 % below | without the judge |", end=""
    )
    print(" all threads, processor |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for at, size in enumerate(SIZES):
            steps = asked.steps if size[1] < 100 else asked.steps // 4
            judged = alone(Path(folder, f"{at}-judged"), size, steps)
            plain = alone(Path(folder, f"{at}-plain"), size, steps, judge=False)
            print(
                f"| {size[0]} × {size[1]} | {judged[0]:.3f} ms | {judged[1]:.3f} ms | "
                f"{plain[0]:.3f} ms | {judged[2]:.3f} ms |",
                flush=True,
            )
        if asked.pairs < 2:
            return 0
        logged, bare, calls = in_pairs(Path(folder), asked.preset, asked.pairs)
    median = statistics.median
    costs = [1e3 * (a - b) for a, b in zip(logged, bare, strict=True)]
    low, high = spread(costs, median)
    step_ms = 1e3 * median(bare)
    call_ms = 1e3 * median(calls)
    print(f"\n| {asked.preset}, {asked.pairs} pairs of {TURN} steps | per step |\n|---|---|")
    print(f"| with the log | {1e3 * median(logged):.2f} ms |")
    print(f"| without | {step_ms:.2f} ms |")
    print(f"| the calls of the log, median | {call_ms:.3f} ms, {call_ms / step_ms:.2%} of a step |")
    print(
        f"| difference within a pair, median | {median(costs):+.2f} ms "
        f"({low:+.2f} to {high:+.2f}) |"
    )
    print(
        f"| share of a step | {median(costs) / step_ms:+.2%} "
        f"({low / step_ms:+.2%} to {high / step_ms:+.2%}) |"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
