"""A training without the training: appends steps to run logs at a steady pace.

    python -m benchmarks.live_writer LOG [LOG ...] [--rate 20] [--history 2000]
        [--routers 58 --experts 256] [--cv 0.15 [--spread 0]]

Writes ``--history`` steps to every log at once, prints ``ready``, and then writes ``--rate`` steps
a second to each, until it is terminated. With ``--cv`` the load of every expert is drawn anew at
every step, with this coefficient of variation (chance included), around its own mean: the fair
share, or with ``--spread`` one of a log-normal distribution, as in a run whose experts differ.
"""

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from benchmarks.bulk import bulk_lines
from benchmarks.machine import options_of
from microscope_tui import measures
from microscope_tui.runlog import encode_record
from microscope_tui.scenarios import Shape, draw_counts, jittered

PLANNED_STEPS, TOKENS = 1_000_000, 16384


@contextmanager
def writing(*arguments: object) -> Iterator[None]:
    """Run this module in a process of its own, beside what is measured; end it afterwards."""
    command = [sys.executable, "-m", "benchmarks.live_writer", *map(str, arguments)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        if writer.stdout.readline() != b"ready\n":
            raise RuntimeError("the writer did not start; its message is above")
        yield
        if writer.poll() is not None:
            raise RuntimeError(f"the writer ended early, with code {writer.returncode}")
    finally:
        writer.kill()
        writer.communicate()


def main() -> None:
    model = {"routers": 58, "experts": 256, "top_k": 8}
    options = options_of(__doc__, "logs+", rate=20.0, history=2000, **model, cv=float, spread=0.0)
    writers = []
    for seed, log in enumerate(options.logs):
        log.parent.mkdir(parents=True, exist_ok=True)
        writers.append((log.open("ab", buffering=0), lines_of(options, seed, log.parent.name)))
    for file, lines in writers:
        for _ in range(1 + options.history):  # the header first
            file.write(next(lines))
    print("ready", flush=True)
    due = time.monotonic()
    with suppress(KeyboardInterrupt):
        while True:
            drawn = [next(lines) for _, lines in writers]  # before it is due
            due += 1.0 / options.rate
            time.sleep(max(0.0, due - time.monotonic()))
            for (file, _), line in zip(writers, drawn, strict=True):
                file.write(line)


def lines_of(options: argparse.Namespace, seed: int, run: str) -> Iterator[bytes]:
    """The run record, and then a step a line."""
    size = {"routers": options.routers, "num_experts": options.experts, "top_k": options.top_k}
    size["tokens"] = TOKENS
    pace = {"step_time_s": 1.0 / options.rate, "steps": PLANNED_STEPS, "seed": seed, "run": run}
    bulk = bulk_lines(**size, **pace, started=time.time() - options.history / options.rate)
    if options.cv is None:
        yield from (line for line in bulk if not line.startswith(b'{"kind":"event"'))
        return
    yield next(bulk)
    yield from noisy(Shape(**size), options.cv, options.spread, 1.0 / options.rate)


def noisy(shape: Shape, cv: float, spread: float, step_time_s: float) -> Iterator[bytes]:
    """Steps for ever."""
    rng = random.Random(0)
    popular = [
        [rng.lognormvariate(0.0, spread) for _ in range(shape.num_experts)]
        for _ in range(shape.routers)
    ]
    by_chance = (1 - shape.fair_count / shape.tokens) / shape.fair_count
    concentration = 1.0 / max(1e-6, cv**2 - by_chance)
    step = 0
    while True:
        step += 1
        rows = [
            draw_counts(jittered(weights, concentration, rng), shape.tokens, shape.top_k, rng)
            for weights in popular
        ]
        yield encode_record(_step(shape, step, step_time_s, rows, rng))


def _step(
    shape: Shape, step: int, step_time_s: float, rows: Sequence[list[int]], rng: random.Random
) -> dict[str, object]:
    means = [measures.load_entropy(row) or 0.0 for row in rows]
    entropies = [round(mean * (0.7 + 0.003 * rng.gauss(0, 1)), 5) for mean in means]
    return {
        "kind": "step",
        "step": step,
        "time": round(time.time(), 3),
        "loss": round(2.3 + 0.02 * rng.gauss(0, 1), 5),
        "learning_rate": 3e-4,
        "grad_norm": round(rng.lognormvariate(0, 0.15), 4),
        "tokens": shape.tokens,
        "tokens_per_s": round(shape.tokens / step_time_s * rng.uniform(0.97, 1.03), 1),
        "step_time_s": step_time_s,
        "router": {"entropy": entropies, "mean_entropy": means, **measures.summarise(rows)},
        "tokens_per_expert": rows,
    }


if __name__ == "__main__":
    main()
