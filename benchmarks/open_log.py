"""How long until a finished run is shown, and what that costs.

    python -m benchmarks.open_log [--routers 10] [--experts 8] [--steps 10000] [--runs 5]

Starts ``moe-microscope`` in a real pseudo-terminal of 120 × 40 and takes, from the start of the
process: the first picture of the whole history, the verdict on all of its steps, the
CPU seconds until then, and the peak memory.
"""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import machine, options_of, say
from benchmarks.terminal import Terminal, microscope
from microscope_tui.scenarios import Shape, write_run


def main() -> None:
    options = options_of(__doc__, routers=10, experts=8, steps=10_000, runs=5)
    shape = Shape(routers=options.routers, num_experts=options.experts, steps=options.steps)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        write_run(run, "collapse", shape=shape)
        size = (run / "metrics.jsonl").stat().st_size / 1e6
        print(machine())
        print(f"{options.routers} layers x {options.experts} experts x {options.steps:,} steps,")
        print(f"{size:.1f} MB")
        measured = [open_once(run, options.steps) for _ in range(options.runs)]
    say_all(measured)


def say_all(measured: Sequence[tuple[float, float, float, float]]) -> None:
    """The rows of some openings."""
    names = ("history shown, s", "all read and judged, s", "CPU until then, s", "peak memory, MB")
    for name, values in zip(names, zip(*measured, strict=True), strict=True):
        say(name, values)


def open_once(
    run: Path, steps: int, *options: str, cells: int = 30, timeout: float = 120.0
) -> tuple[float, float, float, float]:
    """Seconds to the history, seconds to the verdict on all, CPU seconds, peak MB of one opening.

    Args:
        run: a run log, or a file of another tool, which collapses.
        options: of ``moe-microscope``.
        cells: of a curve; the samples of a file may leave gaps.
    """
    shown: list[float] = []
    with Terminal(microscope(run, *options)) as terminal:

        def is_judged(text: str) -> bool:
            if not shown and history_is_shown(text, steps, cells):
                shown.append(terminal.age)
            return "CRITICAL" in text and all_is_read(text, steps)

        judged = terminal.wait_until(is_judged, timeout)
        cost = terminal.usage()
    return shown[0] if shown else judged, judged, cost.cpu_s, cost.peak_mb


def history_is_shown(text: str, steps: int, cells: int = 30) -> bool:
    """One of the last steps in the header, and curves of more than ``cells`` braille cells a row.

    The samples of another tool's file end a little before its last step.
    """
    curves = [
        line
        for line in text.split("\n")[1:]
        if sum("\u2801" <= c <= "\u28ff" for c in line) > cells
    ]
    return step_of(text) >= 0.98 * steps and len(curves) >= 5


def all_is_read(text: str, steps: int) -> bool:
    """The last step in the header, and no word of what is still to be read or judged."""
    return step_of(text) == steps and not re.search(
        r"(?:reading|scanning|diagnosis at)[^\n%]* \(?\d+%", text
    )


def step_of(text: str) -> int:
    """The step in the header."""
    found = re.search(r"step ([\d,]+)", text.partition("\n")[0])
    return int(found[1].replace(",", "")) if found else 0


if __name__ == "__main__":
    main()
