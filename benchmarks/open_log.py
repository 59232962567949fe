"""How long until a finished run stands on the screen, and what that costs.

    python -m benchmarks.open_log [--routers 10] [--experts 8] [--steps 10000] [--runs 5]

Starts ``moe-microscope`` in a real pseudo-terminal of 120 × 40 and takes, from the start of the
process: the first picture of the whole history, the end of the full scan with its verdict, the
CPU seconds until then, and the peak memory.
"""

import argparse
import fcntl
import os
import pty
import select
import signal
import statistics
import struct
import sys
import tempfile
import termios
import time
from pathlib import Path

import pyte

from benchmarks.machine import machine
from microscope_tui.scenarios.synthetic import Shape
from microscope_tui.scenarios.write import write_run

COLUMNS, ROWS = 120, 40


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
    started = time.monotonic()
    pid, file = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        command = [sys.executable, "-m", "microscope_tui.cli", str(run)]
        os.execve(
            sys.executable, command, kept | {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        )
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    shown = None
    while True:
        if select.select([file], [], [], 0.02)[0]:
            stream.feed(os.read(file, 65536))
        text = "\n".join(screen.display)
        if shown is None and history_is_shown(text, steps):
            shown = time.monotonic() - started
        if "CRITICAL" in text:
            break
        if time.monotonic() - started > 120:
            raise TimeoutError(f"no verdict within 120 s; the screen shows:\n{text}")
    judged = time.monotonic() - started
    cpu, memory = usage(pid)
    os.kill(pid, signal.SIGTERM)
    os.waitpid(pid, 0)
    os.close(file)
    return shown or judged, judged, cpu, memory


def history_is_shown(text: str, steps: int) -> bool:
    """The last step in the header, and a braille curve that reaches across its column."""
    header, _, table = text.partition("\n")
    curves = [
        line for line in table.split("\n") if sum("\u2801" <= c <= "\u28ff" for c in line) > 30
    ]
    return f"step {steps:,}" in header and len(curves) >= 5


def usage(pid: int) -> tuple[float, float]:
    """CPU seconds so far and peak resident megabytes of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    status = Path(f"/proc/{pid}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return cpu, int(peak.split()[1]) / 1024


if __name__ == "__main__":
    main()
