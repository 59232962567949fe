"""Write a run log of any size, for the other benchmarks and for trying things out.

    python -m benchmarks.make_log PATH [--routers 58 --experts 256 --steps 100000]
        [--collapse 17@60000] [--spike 30000=9.5] [--restart 50000@49001] [--bias]

Progress goes to standard error; what the log holds is printed at the end.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from benchmarks.bulk import write_bulk
from benchmarks.machine import machine


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help="the .jsonl file; it must not exist")
    parser.add_argument("--routers", type=int, default=58)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--collapse", metavar="ROUTER@STEP", help="router index (from 0)")
    parser.add_argument("--spike", metavar="STEP=LOSS", action="append", default=[])
    parser.add_argument("--restart", metavar="AFTER@BACK_TO", action="append", default=[])
    parser.add_argument("--bias", action="store_true", help="write expert_bias rows too")
    parser.add_argument("--unfinished", action="store_true", help="without the end event")
    options = parser.parse_args()
    if options.path.exists():
        parser.error(f"{options.path} exists already: remove it, or choose another path")
    started = time.monotonic()
    truth = write_bulk(
        options.path,
        progress=on_standard_error(started),
        routers=options.routers,
        num_experts=options.experts,
        top_k=options.top_k,
        tokens=options.tokens,
        steps=options.steps,
        seed=options.seed,
        collapse=pair(options.collapse) if options.collapse else None,
        spikes={int(s): float(v) for s, v in (spike.split("=") for spike in options.spike)},
        restarts=[pair(restart) for restart in options.restart],
        finished=not options.unfinished,
        bias=options.bias,
        run=options.path.parent.name or "bulk",
    )
    seconds = time.monotonic() - started
    sys.stderr.write("\n")
    print(machine())
    print(f"{truth.size / 1e6:,.1f} MB in {seconds:.1f} s, {truth.size / 1e6 / seconds:,.0f} MB/s")
    for name, value in asdict(truth).items():
        print(f"{name:>16}: {value}")


def pair(text: str) -> tuple[int, int]:
    """``17@60000`` as two numbers."""
    left, _, right = text.partition("@")
    return int(left), int(right)


def on_standard_error(started: float) -> Callable[[int, int], None]:
    """One line that is written over."""

    def say(lines: int, size: int) -> None:
        speed = size / 1e6 / max(1e-6, time.monotonic() - started)
        sys.stderr.write(f"\r{lines:,} lines, {size / 1e6:,.0f} MB, {speed:,.0f} MB/s ")
        sys.stderr.flush()

    return say


if __name__ == "__main__":
    main()
