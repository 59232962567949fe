"""Write a run log of any size, for the other benchmarks and for trying things out.

    python -m benchmarks.make_log PATH [--routers 58 --experts 256 --steps 100000]
        [--collapse 17@60000] [--spike 30000=9.5] [--restart 50000@49001] [--bias]

``--collapse ROUTER@STEP`` counts routers from 0, ``--restart AFTER@BACK_TO`` goes back after a
step; there may be several spikes and restarts. ``--bias`` writes rows of ``expert_bias`` too,
``--unfinished`` no end event. Progress goes to standard error; what the log holds is printed at
the end. PATH must not exist.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict

from benchmarks.bulk import write_bulk
from benchmarks.machine import machine, options_of


def main() -> None:
    sizes = {"routers": 58, "experts": 256, "top_k": 8, "tokens": 16384, "steps": 100_000}
    changes = {"collapse": str, "spike": [], "restart": [], "bias": False, "unfinished": False}
    options = options_of(__doc__, "path", **sizes, seed=0, **changes)
    if options.path.exists():
        sys.exit(f"{options.path} exists already: remove it, or choose another path")
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
