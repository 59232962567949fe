"""A folder with many runs: how long until they are listed, and what it costs to keep watching.

    python -m benchmarks.many_runs [--runs 1000] [--live 3] [--keys 4] [--pattern REGEX]

Makes a folder of small runs of all ages, finished and left unfinished; a process appends a step a
second to some of them. ``moe-microscope FOLDER`` is started in a pseudo-terminal of 140 × 50, and
once its first screen stands, the keys that open the list of runs are pressed. Measured: seconds
until the first screen, until the list shows runs, the share of one core afterwards, and memory.
"""

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.bulk import write_bulk
from benchmarks.following import COLOURS_256, COLUMNS, ROWS
from benchmarks.live_writer import writing
from benchmarks.machine import machine, options_of
from benchmarks.terminal import Terminal

KEYS = "4"
"""What opens the list of runs from the first screen."""
PATTERN = r"\brun-\d{4}\b"
"""A run in the list; it stands once so many different ones are on the screen:"""
LISTED = 10
FIRST_SCREEN = r"step [\d,]+"
WATCH_S = 20.0
ROUTERS, EXPERTS, TOP_K, TOKENS = 10, 8, 2, 4096


def main() -> None:
    options = options_of(
        __doc__, runs=1000, live=3, steps=60, keys=KEYS, pattern=PATTERN, timeout=60.0
    )
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        live = make_runs(folder, options.runs, options.live, options.steps)
        size = sum(log.stat().st_size for log in folder.glob("*/*.jsonl"))
        print(f"{options.runs:,} runs, {len(live)} of them live, {size / 1e6:.0f} MB")
        shape = ("--routers", ROUTERS, "--experts", EXPERTS, "--top-k", TOP_K)
        with writing(*live, "--rate", 1, "--history", options.steps, *shape):
            measure(folder, options)


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


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Open the folder once and print the table."""
    command = [sys.executable, "-m", "microscope_tui.cli", str(folder)]
    with Terminal(command, columns=COLUMNS, rows=ROWS, environment=COLOURS_256) as terminal:
        first = terminal.wait_until(lambda text: bool(re.search(FIRST_SCREEN, text)))
        print(f"{'first screen, s':>24}: {first:.2f}")
        terminal.read(0.5)
        pressed = terminal.age
        terminal.press(options.keys)
        try:
            listed = terminal.wait_until(
                lambda text: len(set(re.findall(options.pattern, text))) >= LISTED,
                timeout=options.timeout,
            )
            print(f"{'runs listed, s':>24}: {listed - pressed:.2f} after the key")
        except TimeoutError:
            seen = len(set(re.findall(options.pattern, terminal.text)))
            print(
                f"{'runs listed, s':>24}: not measured: {seen} runs instead of {LISTED} on the "
                f"screen {options.timeout:g} s after the key {options.keys!r}"
            )
        watch_on(terminal)


def watch_on(terminal: Terminal) -> None:
    """What the folder costs from now on."""
    memory, shares = [], []
    before, at, sent = terminal.usage(), terminal.age, terminal.sent
    started = at
    while terminal.age - started < WATCH_S:
        terminal.read(1.0)
        cost, now = terminal.usage(), terminal.age
        shares.append((cost.cpu_s - before.cpu_s) / (now - at))
        memory.append(cost.memory_mb)
        before, at = cost, now
    busiest, mean = max(shares), statistics.fmean(shares)
    print(f"{'CPU, share of one core':>24}: {mean:.1%}, {busiest:.1%} in the busiest second")
    print(
        f"{'memory, MB':>24}: {memory[0]:.1f} at first, {memory[-1]:.1f} at the end, "
        f"{before.peak_mb:.1f} peak"
    )
    print(f"{'sent, bytes/s':>24}: {(terminal.sent - sent) / (at - started):,.0f}")


if __name__ == "__main__":
    main()
