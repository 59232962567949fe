"""A log of gigabytes: opening it, moving through it, and what the background passes cost.

    python -m benchmarks.big_log LOG [--routers 58] [--experts 256] [--steps 100000] [--runs 3]

LOG is written if it does not exist. In a real pseudo-terminal of 140 × 50, from the start of the
process: the whole history on the screen (sampled), the end of the scan, the end of the diagnosis,
peak memory; while the scan runs and after it, key press to repaint; and from the Enter of "go to
step N" to the heatmap of that step. The file is read once before, to be cached.
"""

import argparse
import random
from collections import defaultdict
from itertools import cycle
from pathlib import Path

from benchmarks.bulk import write_bulk
from benchmarks.machine import machine, options_of, say
from benchmarks.open_log import history_is_shown
from benchmarks.terminal import Terminal, microscope

COLUMNS, ROWS = 140, 50
MOVES = 20 * "j" + 20 * "k"  # down the layers and up again, so that every key moves something
KEYS, JUMPS = 60, 40
SCANNING, JUDGING = "scanning the log", "diagnosis at step"
Measured = defaultdict[str, list[float]]
"""Values by name, in the order in which they were first measured."""


def main() -> None:
    sizes = {"routers": 58, "experts": 256, "steps": 100_000}
    options = options_of(__doc__, "log", **sizes, runs=3, wait_for_diagnosis=False)
    if not options.log.exists():
        sizes = {"num_experts": options.experts, "top_k": 8, "tokens": 16_384}
        write_bulk(options.log, routers=options.routers, steps=options.steps, **sizes)
    size = warm(options.log)
    print(machine())
    print(f"{options.log}: {size / 1e9:.2f} GB, {options.steps:,} steps")
    opened = [open_once(options.log, options.steps) for _ in range(options.runs)]
    say("whole history shown, s", opened)
    measured: Measured = defaultdict(list)
    for passes in (undisturbed, under_keys):
        with Terminal(microscope(options.log), columns=COLUMNS, rows=ROWS) as terminal:
            passes(terminal, options, size, measured)
    for name, values in measured.items():
        say(name, values)


def undisturbed(
    terminal: Terminal, options: argparse.Namespace, size: int, measured: Measured
) -> None:
    """Open and only look: the speed of the passes without key presses."""
    shown = terminal.wait_until(lambda text: SCANNING in text)
    scanned = terminal.wait_until(lambda text: SCANNING not in text)
    measured["scan, MB/s"].append(size / 1e6 / (scanned - shown))
    measured["peak memory after the scan, MB"].append(terminal.usage().peak_mb)
    if options.wait_for_diagnosis:
        terminal.wait_until(lambda text: JUDGING in text)
        judged = terminal.wait_until(lambda text: "diagnosis at" not in text, 1200)
        measured["diagnosis, from the start, s"].append(judged)
        measured["diagnosis, MB/s"].append(size / 1e6 / (judged - scanned))
    cost = terminal.usage()
    measured["CPU, s"].append(cost.cpu_s)
    measured["peak memory at the end, MB"].append(cost.peak_mb)


def under_keys(
    terminal: Terminal, options: argparse.Namespace, size: int, measured: Measured
) -> None:
    """Press keys while the scan runs, and jump about while the diagnosis does."""
    terminal.wait_until(lambda text: SCANNING in text)
    moves = cycle(MOVES)
    while SCANNING in terminal.text:
        measured["key to paint, scanning, ms"].append(press(terminal, next(moves)))
    for _ in range(KEYS):
        measured["key to paint, judging, ms"].append(press(terminal, next(moves)))
    jumps = random.Random(0)
    for _ in range(JUMPS):
        measured["jump to a step, ms"].append(jump(terminal, jumps.randrange(1, options.steps)))


def press(terminal: Terminal, key: str) -> float:
    """Milliseconds from a key that moves the cursor to the moved cursor."""
    terminal.read(random.uniform(0.01, 0.1))
    before = cursor(terminal.text)
    return terminal.react(key, lambda text: cursor(text) not in (before, None))


def jump(terminal: Terminal, step: int) -> float:
    """Milliseconds from the Enter of a jump to the heatmap of that step."""
    terminal.press(f":{step}")
    terminal.wait_until(lambda text: f"go to step {step}" in text)
    ribbon = f"{step:,} PAUSED"
    return terminal.react("\r", lambda text: ribbon in text and f"step {step:,}" in text[:140])


def cursor(text: str) -> int | None:
    """The row of the cursor."""
    for at, line in enumerate(text.split("\n")):
        if line.startswith(("▶", ">")):
            return at
    return None


def open_once(log: Path, steps: int) -> float:
    with Terminal(microscope(log), columns=COLUMNS, rows=ROWS) as terminal:
        return terminal.wait_until(lambda text: history_is_shown(text, steps, 15))


def warm(log: Path) -> int:
    """Read the file once; returns its size."""
    size = 0
    with log.open("rb", buffering=0) as file:
        while data := file.read(1 << 22):
            size += len(data)
    return size


if __name__ == "__main__":
    main()
