"""How fast the histories of W&B and TensorBoard are read, with few and with all keys matched.

    python -m benchmarks.scan_sources [--megabytes 64] [--keys 3000]

Files as wandb 0.31 and torch write them: W&B's items in another order in every record, without the
summaries that double a real file (``--summaries`` adds them). ``sample`` is the first picture of a
long run: rows from 100 places. Times are processor times of one core.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path

from benchmarks.machine import machine
from microscope_tui.sources import Keys, RowReader, TensorBoardReader, WandbReader
from tests.sources import event_bytes, wandb_bytes

PLACES = 100
FEW = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--keys", type=int, default=3000)
    parser.add_argument("--summaries", action="store_true", help="W&B: with a summary per step")
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        for matched in (FEW, options.keys):
            keys = [f"train/group_{i % 30}/some_name_{i}" for i in range(options.keys - matched)]
            keys += [f"moe_ep_usage/L-{i // 256}_EP-{i % 256}" for i in range(matched)]
            path = Path(folder) / "run-x.wandb"
            write_wandb(path, keys, options.megabytes << 20, options.summaries)
            show("wandb", WandbReader, path, matched, len(keys))
            path = Path(folder) / "events.out.tfevents.1.host"
            write_events(path, keys, options.megabytes << 20)
            show("tensorboard", TensorBoardReader, path, matched, len(keys))


def write_wandb(path: Path, keys: list[str], size: int, summaries: bool) -> None:
    """A file of about ``size`` bytes; 32 rows over and over."""
    chance = random.Random(0)
    rows = []
    for _ in range(32):
        chance.shuffle(keys)
        row = [wandb_bytes.item(key, chance.random()) for key in keys]
        row += [wandb_bytes.item("_timestamp", 1.7e9 + chance.random())]
        rows.append(b"".join(wandb_bytes.part(1, item) for item in row))
    records = [wandb_bytes.run(num_experts=256)]
    written = step = 0
    while written < size:
        items = rows[step % len(rows)]
        records.append(wandb_bytes.history_of(items, step))
        if summaries:
            records.append(wandb_bytes.part(3, items))
        written += len(items) * (2 if summaries else 1)
        step += 1
    path.write_bytes(wandb_bytes.log(records))


def write_events(path: Path, keys: list[str], size: int) -> None:
    """A file of about ``size`` bytes with an event per number, as ``add_scalar`` writes."""
    with path.open("wb") as file:
        file.write(event_bytes.file_of())
        step = 0
        while file.tell() < size:
            step += 1
            for key in keys:
                value = event_bytes.value(key, step * 0.001)
                data = event_bytes.event(step, 1.7e9 + step, value)
                file.write(event_bytes.record(data))


def show(name: str, kind: type[RowReader], path: Path, matched: int, keys: int) -> None:
    size = path.stat().st_size
    started = time.process_time()
    rows = kind(path, Keys()).sample(PLACES)  # type: ignore[call-arg, attr-defined]
    sampled = time.process_time() - started
    reader = kind(path, Keys())  # type: ignore[call-arg, arg-type]
    started = time.process_time()
    numbers = steps = 0
    while not reader.exhausted:
        found = reader.read().rows
        steps += len(found)
        numbers += sum(len(row.values) for row in found)
    took = time.process_time() - started
    print(
        f"{name:12} {matched:5,} of {keys:,} keys: {size / took / 1e6:6.0f} MB/s, "
        f"{numbers:10,} numbers, {steps:6,} rows of {size / 1e6:,.0f} MB; "
        f"sample({PLACES}): {len(rows)} rows in {sampled:.2f} s"
    )


if __name__ == "__main__":
    main()
