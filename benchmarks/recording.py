"""What it costs a training to record and to judge every step.

    python -m benchmarks.recording [--steps 400]

``RunRecorder`` alone on invented healthy steps: time on the training thread, and processor time of
the writing thread too. A real step varies by more than the log costs: ``benchmarks.probe_overhead``
compares steps with and without the probe.
"""

import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine, options_of
from microscope_tui.probe import RunRecorder
from microscope_tui.scenarios import draw_counts

SIZES = ((5, 8, 2), (7, 16, 4), (58, 256, 8))
"""Routers, experts and choices per token: of the presets tiny, small and deepseek-v3."""
TOKENS = 8192
READINGS = (
    *("entropy", "mean_entropy", "z_loss", "max_logit", "grad_norm", "selected_mass"),
    "margin",
)
PAUSE_S = 0.02
"""Between steps of the recorder alone: a training computes then, and the writing thread writes."""


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
    records, (routers, experts, top_k) = healthy_steps(*size, steps), size
    model = {"layers": list(range(1, routers + 1)), "num_experts": experts, "top_k": top_k}
    balance = {"method": "bias", "bias_update_rate": 0.001}
    known = {"run": "recording", "planned_steps": 100_000, "model": model, "balance": balance}
    log = RunRecorder(folder, **known, **changes)
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


def main() -> None:
    asked = options_of(__doc__, steps=400)
    print(f"{machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    heads = "training thread, median | 95 % below | without the judge | all threads, processor"
    print(f"| routers × experts | {heads} |\n|---|---|---|---|---|")
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


if __name__ == "__main__":
    main()
