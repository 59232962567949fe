"""A folder with many runs: how long until they are listed, and what it costs to keep watching.

    python -m benchmarks.many_runs [--runs 1000] [--live 3]

Makes a folder of small runs of all ages, finished and left unfinished; a process appends a step a
second to some of them. ``moe-microscope FOLDER`` is started in a pseudo-terminal of 140 × 50, and
once its first screen is drawn, the key that opens the list of runs is pressed. Measured: seconds
until the first screen, until the list shows runs, the share of one core afterwards, and memory.
"""

import os
import re
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from benchmarks.bulk import write_bulk
from benchmarks.following import STEP_SHOWN, sent_a_second, share, watch, window
from benchmarks.live_writer import writing
from benchmarks.machine import machine, options_of

LISTED = 10
"""The list is complete once so many different runs are on the screen."""
WATCH_S = 20.0
ROUTERS, EXPERTS, TOP_K, TOKENS = 10, 8, 2, 4096


def main() -> None:
    options = options_of(__doc__, runs=1000, live=3, steps=60)
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        live = make_runs(folder, options.runs, options.live, options.steps)
        size = sum(log.stat().st_size for log in folder.glob("*/*.jsonl"))
        print(f"{options.runs:,} runs, {len(live)} of them live, {size / 1e6:.0f} MB")
        shape = ("--routers", ROUTERS, "--experts", EXPERTS, "--top-k", TOP_K)
        with writing(*live, "--rate", 1, "--history", options.steps, *shape):
            measure(folder)


def make_runs(folder: Path, runs: int, live: int, steps: int) -> list[Path]:
    """Write all runs that are over; the logs of the live ones, for a writer to fill."""
    now = time.time()
    logs = [folder / f"run-{number:04}" / "metrics.jsonl" for number in range(runs)]
    for number, log in enumerate(logs[live:]):
        age = 120.0 * 1.01 ** (number * 1000 / runs)  # two minutes to a month
        write_bulk(
            log,
            routers=ROUTERS,
            num_experts=EXPERTS,
            top_k=TOP_K,
            tokens=TOKENS,
            steps=steps,
            seed=number,
            collapse=(6, steps // 3) if number % 10 == 3 else None,
            finished=number % 4 != 1,
            started=now - age - steps,
            run=log.parent.name,
        )
        os.utime(log, (now - age, now - age))
    return logs[:live]


def measure(folder: Path) -> None:
    with window(folder) as terminal:
        shown = terminal.wait_until(lambda text: bool(re.search(STEP_SHOWN, text)))
        print(f"{'first screen, s':>24}: {shown:.2f}")
        terminal.read(0.5)
        pressed = terminal.age
        terminal.press("4")
        runs = re.compile(r"\brun-\d{4}\b")
        listed = terminal.wait_until(lambda text: len(set(runs.findall(text))) >= LISTED)
        print(f"{'runs listed, s':>24}: {listed - pressed:.2f} after the key")
        samples = list(watch(terminal, None, WATCH_S))
        peak = terminal.usage().peak_mb
    first, last = samples[0], samples[-1]
    busiest = max(share(*pair) for pair in pairwise(samples))
    mean = share(first, last)
    print(f"{'CPU, share of one core':>24}: {mean:.1%}, {busiest:.1%} in the busiest second")
    print(
        f"{'memory, MB':>24}: {first.memory_mb:.1f} at first, {last.memory_mb:.1f} at the end, "
        f"{peak:.1f} peak"
    )
    print(f"{'sent, bytes/s':>24}: {sent_a_second(first, last):,.0f}")


if __name__ == "__main__":
    main()
