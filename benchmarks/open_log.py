"""How long until a finished run stands on the screen, and what that costs.

    python -m benchmarks.open_log [--routers 10] [--experts 8] [--steps 10000] [--runs 5]

Starts ``moe-microscope`` in a real pseudo-terminal of 120 × 40 and takes, from the start of the
process: the first picture of the whole history, the end of the full scan with its verdict, the
CPU seconds until then, and the peak memory.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.terminal import Terminal
from microscope_tui.scenarios.shape import Shape
from microscope_tui.scenarios.write import write_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--routers", type=int, default=10)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    shape = Shape(routers=options.routers, num_experts=options.experts, steps=options.steps)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        write_run(run, "collapse", shape=shape)
        size = (run / "metrics.jsonl").stat().st_size / 1e6
        print(machine())
        print(f"{options.routers} layers x {options.experts} experts x {options.steps:,} steps,")
        print(f"{size:.1f} MB")
        measured = [open_once(run, options.steps) for _ in range(options.runs)]
    for at, name in enumerate(
        ["history shown, s", "scan and verdict, s", "CPU, s", "peak memory, MB"]
    ):
        values = sorted(row[at] for row in measured)
        middle = statistics.median(values)
        print(f"{name:>20}: median {middle:.2f}, {values[0]:.2f} to {values[-1]:.2f}")


def open_once(run: Path, steps: int) -> tuple[float, float, float, float]:
    """Seconds to the history, seconds to the verdict, CPU seconds, peak MB of one opening."""
    shown: list[float] = []
    command = [sys.executable, "-m", "microscope_tui.cli", str(run)]
    with Terminal(command) as terminal:

        def is_judged(text: str) -> bool:
            if not shown and history_is_shown(text, steps):
                shown.append(terminal.age)
            return "CRITICAL" in text

        judged = terminal.wait_until(is_judged)
        cost = terminal.usage()
    return shown[0] if shown else judged, judged, cost.cpu_s, cost.peak_mb


def history_is_shown(text: str, steps: int, cells: int = 30) -> bool:
    """The last step in the header, and curves of more than ``cells`` braille cells a row."""
    header, _, table = text.partition("\n")
    curves = [
        line for line in table.split("\n") if sum("\u2801" <= c <= "\u28ff" for c in line) > cells
    ]
    return f"step {steps:,}" in header and len(curves) >= 5


if __name__ == "__main__":
    main()
