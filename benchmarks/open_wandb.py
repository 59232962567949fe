"""How long until the whole history of another tool's file of gigabytes is shown.

    python -m benchmarks.open_wandb [--form wandb|jsonl|csv|mlflow]
                                    [--gigabytes 2] [--steps 100000] [--keys 3000] [--runs 3]

A file as wandb 0.31 writes it, without the summaries that double a real one; or the same numbers as
JSON lines, as a table of step, key and value, or in a database. The keys are the shares of 64
experts in as many layers as fit; they do not fit in every step of so few bytes (3,000 keys are 0.1
MB), so the routers are logged every few steps, and the loss in all. The last third of the run has a
collapsed layer. From the start of the process, in a pseudo-terminal of 120 x 40: the
first picture of the whole history, the end of the reading with its verdict, the CPU seconds until
then, and the peak memory. The load of the machine is printed above the numbers.
"""

import argparse
import json
import os
import random
import sqlite3
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from pathlib import Path

from benchmarks.big_log import warm
from benchmarks.machine import machine, options_of
from benchmarks.open_log import open_once, say_all
from tests.sources import sound, wandb_bytes

EXPERTS, ROWS = 64, 16
COLLAPSED = 3
FILES = {"wandb": "run-x.wandb", "jsonl": "log.jsonl", "csv": "log.csv", "mlflow": "mlflow.db"}
INSERT = "INSERT INTO metrics SELECT ?, ?, 17e8, run_uuid, ?, 0 FROM runs WHERE name = 'first try'"
item = cache(lambda *pair: wandb_bytes.part(1, wandb_bytes.item(*pair)))
Logged = Iterator[tuple[int, dict[str, float]]]


def main() -> None:
    options = options_of(__doc__, form="wandb", gigabytes=2.0, steps=100_000, keys=3000, runs=3)
    known = ("--num-experts", str(EXPERTS), "--top-k", "1")
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILES[options.form]
        every = write(path, options)
        size = warm(path)
        print(f"{size / 1e9:.2f} GB, {options.steps:,} steps, {options.keys:,} keys", end="")
        print(f" in every step that {every} divides; load {os.getloadavg()[0]:.2f}")
        measured = [
            open_once(path, options.steps, *known, cells=8, timeout=1800)
            for _ in range(options.runs)
        ]
        print(f"load {os.getloadavg()[0]:.2f}")
    say_all(measured)


def write(path: Path, options: argparse.Namespace) -> int:
    """Write the file; returns how many steps there are per step with routers."""
    healthy, sick = rows(options.keys, False), rows(options.keys, True)
    row_bytes = statistics.mean(len(json.dumps(row)) for row in healthy)
    row_bytes *= 6.0 if options.form == "mlflow" else 1.0
    every = max(1, round(options.steps * row_bytes / (options.gigabytes * 1e9)))

    def logged() -> Logged:
        for step in range(1, options.steps + 1):
            values = {"_timestamp": 1.7e9 + step, "train/loss": 2.0 + 1000 / (1000 + step)}
            if step % every == 0 or step == options.steps:
                values |= (sick if step > options.steps * 2 // 3 else healthy)[step // every % ROWS]
            yield step, values

    if options.form != "mlflow":
        with path.open("wb") as file:
            file.writelines(lines(options.form, logged()))
        return every
    path.write_bytes(sound.database("mlflow.sql"))
    with closing(sqlite3.connect(path)) as database:
        database.execute("DELETE FROM metrics")
        numbers = ((*pair, step) for step, values in logged() for pair in values.items())
        database.executemany(INSERT, numbers)
        database.commit()
    return every


def lines(form: str, logged: Logged) -> Iterator[bytes]:
    if form == "wandb":
        yield from wandb_bytes.pieces(records(logged))  # and nothing is left below
    yield b"step,key,value\n" if form == "csv" else b""
    for step, values in logged:
        row = json.dumps({"step": step} | values) + "\n"
        if form == "csv":
            row = "".join(f"{step},{key},{value}\n" for key, value in values.items())
        yield row.encode()


def records(logged: Logged) -> Iterator[bytes]:
    yield wandb_bytes.run(num_experts=EXPERTS, top_k=1)
    for step, values in logged:
        items = b"".join(item(*pair) for pair in values.items())
        number = wandb_bytes.part(2, wandb_bytes.part(1, step))
        yield wandb_bytes.part(1, 7) + wandb_bytes.part(2, items + number)


def rows(keys: int, sick: bool) -> list[dict[str, float]]:
    """The numbers of some steps: shares, and others up to ``keys``; in another order each."""
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
        made.append(dict(chance.sample(list(values.items()), len(values))))
    return made


if __name__ == "__main__":
    main()
