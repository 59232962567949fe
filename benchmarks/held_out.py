"""What a placement promises against what it then does, and the time and memory of a large study.

    python -m benchmarks.held_out [--runs 100] [--layers 61] [--experts 256] [--steps 1000]

Runs of 8 layers × 64 experts on 8 ranks with 8 extra copies, 400 steps, whose truth is known. The
promise is the held-out gain, the truth the gain of the same placement on 400 fresh steps that
follow. Then one log of the given size with uneven loads that drift, on 32 ranks with 32 copies.
"""

import resource
import subprocess
import tempfile
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.machine import machine, options_of
from benchmarks.terminal import microscope
from microscope_tui.extensions.placement.study import Request, study
from microscope_tui.runlog import RouterInfo, RunRecord, encode_record
from microscope_tui.watch.counted import Counts, Layer

LAYERS, EXPERTS, STEPS, PAIRS = 8, 64, 400, 16_384


def log_shares(rng: np.random.Generator, steps: int, half_life: float, spread: float) -> np.ndarray:
    """Log popularity ``[steps, layers, experts]``; after ``half_life`` steps half is new."""
    state = rng.normal(0, spread, (LAYERS, EXPERTS))
    keep, found = 0.5 ** (1 / half_life), []
    for _ in range(steps):
        state = keep * state + rng.normal(0, spread * (1 - keep**2) ** 0.5, state.shape)
        found.append(state)
    return np.array(found)


def hot(period: int) -> Callable[[np.random.Generator], np.ndarray]:
    """One expert per layer is 8 times as popular; another one every ``period`` steps."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        found = np.zeros((2 * STEPS, LAYERS, EXPERTS))
        for step in range(2 * STEPS):
            found[step, :, step // period * 7 % EXPERTS] = np.log(8)
        return found

    return draw


SCENARIOS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "stationary": lambda rng: log_shares(rng, 2 * STEPS, np.inf, 0.6),
    "half new after 1,000 steps": lambda rng: log_shares(rng, 2 * STEPS, 1000, 0.6),
    "half new after 100 steps": lambda rng: log_shares(rng, 2 * STEPS, 100, 0.6),
    "half new after 10 steps": lambda rng: log_shares(rng, 2 * STEPS, 10, 0.6),
    "hot expert moves every 13 steps": hot(13),
    "hot expert moves every 400 steps": hot(400),
    "even routing": lambda rng: np.zeros((2 * STEPS, LAYERS, EXPERTS)),
}


def drawn(rng: np.random.Generator, logs: np.ndarray) -> Counts:
    """Counts of steps with these popularities."""
    shares = np.exp(logs) / np.exp(logs).sum(-1, keepdims=True)
    counts = rng.poisson(PAIRS * shares)
    routers = tuple(RouterInfo(f"L{i}", i, EXPERTS, 1) for i in range(LAYERS))
    layers = [Layer(r, array("f", counts[:, r.depth].ravel().tolist())) for r in routers]
    return Counts(RunRecord("run", routers), array("q", range(1, len(logs) + 1)), layers, 1)


def promises(runs: int) -> None:
    """A row per scenario: how often it pays, the promised gain, and the gain that followed."""
    print("| loads | pays | promised gain | true gain | furthest off |\n|---|---|---|---|---|")
    for name, draw in SCENARIOS.items():
        found = []
        for seed in range(runs):
            rng = np.random.default_rng(seed)
            counts = drawn(rng, draw(rng))
            made = study(counts, Request(ranks=8, replicas=8, score=(STEPS // 2 + 1, STEPS)))
            later = Request(ranks=8, replicas=8, fit=(1, 1), score=(STEPS + 1, 2 * STEPS))
            truth = study(counts, later, made.chosen.placements)
            found.append((not made.reason, made.gain.mean, truth.gain.mean))
        pays, promised, true = np.array(found, float).T
        off = np.abs(promised - true).max()
        gains = f"{promised.mean():+.3f} | {true.mean():+.3f} | {off:.3f}"
        print(f"| {name} | {pays.mean():.0%} | {gains} |", flush=True)


def large(layers: int, experts: int, steps: int) -> None:
    """Seconds and peak memory of the command on one log."""
    rng = np.random.default_rng(0)
    state = rng.normal(0, 0.6, (layers, experts))
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "metrics.jsonl"
        model = {"layers": list(range(layers)), "num_experts": experts, "top_k": 8}
        with log.open("wb") as file:
            file.write(encode_record({"kind": "run", "format_version": 1, "model": model}))
            for step in range(1, steps + 1):
                state = 0.999 * state + rng.normal(0, 0.6 * 0.0447, state.shape)
                shares = np.exp(state) / np.exp(state).sum(-1, keepdims=True)
                counts = rng.poisson(8 * PAIRS * shares).tolist()
                record = {"kind": "step", "step": step, "tokens": PAIRS}
                file.write(encode_record(record | {"tokens_per_expert": counts}))
        command = microscope("placement", log, "--ranks", 32, "--replicas", 32)
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        took = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(done.stdout + done.stderr)
        size = f"{layers} × {experts} × {steps:,} steps, {log.stat().st_size / 1e6:.0f} MB"
        print(f"{size}: {took:.1f} s, {peak:.0f} MB, exit {done.returncode}")


def main() -> None:
    options = options_of(__doc__, runs=100, layers=61, experts=256, steps=1000)
    print(machine())
    promises(options.runs)
    large(options.layers, options.experts, options.steps)


if __name__ == "__main__":
    main()
