"""The classic experiment: ten layers on TinyShakespeare, balanced in four ways.

    python -m benchmarks.balancing_methods --data tinyshakespeare [--seeds 3] [--only bias ...]

The shape is the shakespeare preset, scaled down to what two CPU cores finish: ten layers, eight
experts, top 2.

For every run: held-out loss, c per layer and MaxVio over the last tenth of the steps (counts
summed), and the alerts, and when. Runs go two at a time, one thread each. Logs are
kept in ``--folder``, and runs that are done there are not trained again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, options_of
from microscope_tui import measures

ROOT = Path(__file__).resolve().parents[1]
SHAPE = [
    "--preset=shakespeare", "--model.hidden_size=128", "--model.num_attention_heads=4",
    "--model.intermediate_size=384", "--model.moe_intermediate_size=96", "--model.kv_lora_rank=48",
    "--model.max_position_embeddings=128", "--model.initializer_range=0.02", "--batch-size=8",
    "--lr=1e-3", "--device=cpu", "--dtype=fp32",
]  # fmt: skip
METHODS = {
    "none": ["--balance=none"],
    "bias": ["--balance=bias", "--bias-update-rate=0.01", "--seq-aux-weight=0"],
    "bias + sequence": ["--balance=bias", "--bias-update-rate=0.01", "--seq-aux-weight=1e-4"],
    "auxiliary": ["--balance=aux", "--aux-weight=0.01"],
}


@dataclass(frozen=True)
class Result:
    """One run."""

    method: str
    seed: int
    final_loss: float
    collapse_index: list[float]
    max_violation: list[float]
    said: list[str]


def main() -> None:
    asked = options_of(
        __doc__, data="tinyshakespeare", seeds=3, steps=1000, only=tuple(METHODS), folder=Path
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.folder or Path(scratch)
        jobs = [(method, seed) for seed in range(asked.seeds) for method in asked.only]
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(lambda job: one_run(*job, asked, folder), jobs))
    print(machine())
    print(f"{asked.steps} steps of 8 × 128 characters, {asked.seeds} seeds\n")
    print_table(asked.only, results)


def one_run(method: str, seed: int, asked: argparse.Namespace, folder: Path) -> Result:
    name = f"{method.replace(' ', '-').replace('+', 'and')}-{seed}"
    log = folder / "logs" / name / "metrics.jsonl"
    if not (log.exists() and '"reason":"finished"' in log.read_text("utf-8")[-300:]):
        command = [
            sys.executable, "-m", "train", f"--run={name}", "--resume=auto", f"--seed={seed}",
            f"--steps={asked.steps}", f"--eval-every={asked.steps // 10}", f"--data={asked.data}",
            f"--log-dir={folder / 'logs'}", f"--checkpoint-dir={folder / 'checkpoints'}",
            *SHAPE, *METHODS[method],
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        print(f"{name} done", file=sys.stderr, flush=True)
    return read_result(method, seed, log, asked.steps)


def read_result(method: str, seed: int, log: Path, steps: int) -> Result:
    records = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    model = next(r for r in records if r["kind"] == "run")["model"]
    last = [r["tokens_per_expert"] for r in records if r["kind"] == "step"][-steps // 10 :]
    summed = [
        [sum(column) for column in zip(*rows, strict=True)] for rows in zip(*last, strict=True)
    ]
    effective = [measures.effective_experts(counts) or 0.0 for counts in summed]
    losses = [r["values"]["loss"] for r in records if r.get("event") == "eval"]
    alerts = [r["values"] | {"step": r["step"]} for r in records if r.get("event") == "alert"]
    return Result(
        method=method,
        seed=seed,
        final_loss=losses[-1],
        collapse_index=[
            measures.collapse_index(value, model["num_experts"], model["top_k"]) or 0.0
            for value in effective
        ],
        max_violation=[(measures.max_load(counts) or 1.0) - 1 for counts in summed],
        said=[in_words(alert) for alert in alerts if alert["severity"] != "info"],
    )


def in_words(alert: dict[str, Any]) -> str:
    layers = " ".join(alert["layers"])
    since = f"since {alert['onset']} (at {alert['step']})"
    return f"{alert['severity']} {alert['rule']} {layers} {since}"


def print_table(methods: Sequence[str], results: Sequence[Result]) -> None:
    heads = ["balance", "held-out loss, mean ± sd (each)", "lowest c of a layer, each seed"]
    print("| " + " | ".join([*heads, "layers below 0.8", "highest MaxVio"]) + " |")
    print("|---|---|---|---|---|")
    for method in methods:
        runs = [result for result in results if result.method == method]
        losses = [run.final_loss for run in runs]
        spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
        each = ", ".join(f"{loss:.3f}" for loss in losses)
        lowest = ", ".join(f"{min(run.collapse_index):.2f}" for run in runs)
        below = ", ".join(str(sum(c < 0.8 for c in run.collapse_index)) for run in runs)
        highest = max(max(run.max_violation) for run in runs)
        loss = f"{statistics.mean(losses):.3f} ± {spread:.3f} ({each})"
        print(f"| {method} | {loss} | {lowest} | {below} | {highest:.2f} |")
    print("\nc per layer, first seed:\n")
    for line in layers_of_first_seed(methods, results):
        print(line)
    print("\nWhat the microscope reported while they trained:\n")
    for result in results:
        said = "; ".join(result.said) or "nothing"
        print(f"- {result.method}, seed {result.seed}: {said}")


def layers_of_first_seed(methods: Sequence[str], results: Sequence[Result]) -> Iterator[str]:
    layers = len(results[0].collapse_index)
    yield "| balance | " + " | ".join(f"L{depth}" for depth in range(1, layers + 1)) + " |"
    yield "|---" * (layers + 1) + "|"
    for method in methods:
        run = next(result for result in results if (result.method, result.seed) == (method, 0))
        yield f"| {method} | " + " | ".join(f"{c:.2f}" for c in run.collapse_index) + " |"


if __name__ == "__main__":
    main()
