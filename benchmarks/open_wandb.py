"""How long until the whole history of a W&B file of gigabytes is shown.

    python -m benchmarks.open_wandb [--gigabytes 2] [--steps 100000] [--keys 3000] [--runs 3]

A file as wandb 0.31 writes it, without the summaries that double a real one. The keys are the
shares of 64 experts in as many layers as fit; they do not fit in every step of so few bytes (3,000
keys are 0.1 MB), so the routers are logged every few steps, and the loss in all. The last third of
the run has a collapsed layer. From the start of the process, in a pseudo-terminal of 120 x 40: the
first picture of the whole history, the end of the reading with its verdict, the CPU seconds until
then, and the peak memory. The load of the machine is printed above the numbers.
"""

import argparse
import os
import random
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.big_log import warm
from benchmarks.machine import machine, options_of
from benchmarks.open_log import open_once, say_all
from tests.sources import wandb_bytes

EXPERTS, ROWS = 64, 16
COLLAPSED = 3


def main() -> None:
    options = options_of(__doc__, gigabytes=2.0, steps=100_000, keys=3000, runs=3)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run-x.wandb"
        every = write(path, options)
        size = warm(path)
        print(f"{size / 1e9:.2f} GB, {options.steps:,} steps, {options.keys:,} keys", end="")
        print(f" in every step that {every} divides; load {os.getloadavg()[0]:.2f}")
        measured = [
            open_once(path, options.steps, cells=8, timeout=1800) for _ in range(options.runs)
        ]
        print(f"load {os.getloadavg()[0]:.2f}")
    say_all(measured)


def write(path: Path, options: argparse.Namespace) -> int:
    """Write the file; returns how many steps there are per step with routers."""
    sound, sick = rows(options.keys, False), rows(options.keys, True)
    row_bytes = statistics.mean(map(len, sound))
    every = max(1, round(options.steps * row_bytes / (options.gigabytes * 1e9)))

    def records() -> Iterator[bytes]:
        yield wandb_bytes.run(num_experts=EXPERTS, top_k=1)
        for step in range(1, options.steps + 1):
            items = scalars(step)
            if step % every == 0 or step == options.steps:
                items += (sick if step > options.steps * 2 // 3 else sound)[step // every % ROWS]
            yield wandb_bytes.history_of(items, step)

    with path.open("wb") as file:
        file.writelines(wandb_bytes.pieces(records()))
    return every


def scalars(step: int) -> bytes:
    items = {"_timestamp": 1.7e9 + step, "train/loss": 2.0 + 1000 / (1000 + step)}
    return b"".join(wandb_bytes.part(1, wandb_bytes.item(k, v)) for k, v in items.items())


def rows(keys: int, sick: bool) -> list[bytes]:
    """The items of some steps: shares, and other numbers up to ``keys``; in another order each."""
    chance = random.Random(keys)
    made = []
    for _ in range(ROWS):
        values = {f"train/group_{i}/norm": chance.random() for i in range(keys % EXPERTS)}
        for layer in range(keys // EXPERTS):
            weights = [chance.gauss(1.0, 0.03) for _ in range(EXPERTS)]
            if sick and layer == COLLAPSED:
                weights[0] = 20.0 * EXPERTS
            of_layer = {f"moe_ep_usage/L-{layer}_EP-{e}": w for e, w in enumerate(weights)}
            values |= {key: round(w / sum(weights), 9) for key, w in of_layer.items()}
        items = [wandb_bytes.part(1, wandb_bytes.item(*pair)) for pair in values.items()]
        chance.shuffle(items)
        made.append(b"".join(items))
    return made


if __name__ == "__main__":
    main()
