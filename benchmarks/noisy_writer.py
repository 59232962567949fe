"""A training whose loads are as noisy as one likes, appended to a run log at a steady pace.

    python -m benchmarks.noisy_writer LOG [--cv 0.15] [--spread 0] [--rate 1] [--history 200]
        [--routers 58 --experts 256]

The load of every expert is drawn anew at every step, with this coefficient of variation (chance
included), around its own mean: the fair share, or with ``--spread`` one of a log-normal
distribution, as in a run whose experts differ. Writes ``--history`` steps at once, prints
``ready``, and then writes ``--rate`` steps a second until it is terminated.
"""

import argparse
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from benchmarks.bulk import bulk_lines
from microscope_tui import measures
from microscope_tui.runlog import encode_record
from microscope_tui.scenarios import Shape, draw_counts, jittered

PLANNED_STEPS = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("log", type=Path)
    parser.add_argument("--cv", type=float, default=0.15)
    parser.add_argument("--spread", type=float, default=0.0)
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--history", type=int, default=200)
    parser.add_argument("--routers", type=int, default=58)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--top-k", type=int, default=8)
    options = parser.parse_args()
    shape = Shape(
        routers=options.routers, num_experts=options.experts, top_k=options.top_k, tokens=16384
    )
    options.log.parent.mkdir(parents=True, exist_ok=True)
    lines = noisy_lines(shape, options.cv, 1.0 / options.rate, options.spread)
    with options.log.open("ab", buffering=0) as file:
        for _ in range(1 + options.history):
            file.write(next(lines))
        print("ready", flush=True)
        due = time.monotonic()
        with suppress(KeyboardInterrupt):
            while True:
                line = next(lines)  # drawn before it is due: the pace is that of the clock
                due += 1.0 / options.rate
                time.sleep(max(0.0, due - time.monotonic()))
                file.write(line)


def noisy_lines(
    shape: Shape, cv: float, step_time_s: float, spread: float = 0.0
) -> Iterator[bytes]:
    """The run record, and then a step a line, for ever; whoever takes it decides when."""
    yield next(
        bulk_lines(
            routers=shape.routers,
            num_experts=shape.num_experts,
            top_k=shape.top_k,
            steps=PLANNED_STEPS,
            started=time.time(),
            step_time_s=step_time_s,
            run=f"noise-{cv:g}",
        )
    )
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
    shape: Shape, step: int, step_time_s: float, rows: list[list[int]], rng: random.Random
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
