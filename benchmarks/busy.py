"""Seconds per step of ``tiny`` on a busy machine: as ``train.py`` waits, and as torch waits.

    python -m benchmarks.busy [--steps 30] [--rounds 3]

*Before* sets libgomp's default, as a user may. Numbers: mean from step 4 on, median of the rounds.
*Others*: the processors that other programs used meanwhile; repeat where that is not near 0.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, options_of
from benchmarks.terminal import Terminal, microscope

PLAIN = {name: value for name, value in os.environ.items() if "OMP_" not in name}
BEFORE = {"GOMP_SPINCOUNT": "300000"}


def main() -> None:
    asked = options_of(__doc__, steps=30, rounds=3)
    print(f"{machine()}\n| | before, s | now, s | before, ratio | now, ratio | wanted | others |")
    print("|---" * 7 + "|")
    alone = row(asked, "alone", "1.03")
    row(asked, "two started at once", "2.3", alone, trainings=2)
    row(asked, "beside a load of 5", "6", alone, load=5)
    core = row(asked, "alone on one processor", "", alone, words=["taskset", "-c", "0"])
    row(asked, "beside the microscope ÷ one processor", "1.1", core, watched=True)


def row(asked: Any, name: str, wanted: str, base: float | None = None, **case: Any) -> float:
    """Measure both in turns and print them; returns the seconds before."""
    used, began, found = others(), time.monotonic(), []
    for _ in range(asked.rounds):
        found.append([measure(asked.steps, setting, **case) for setting in (BEFORE, {})])
    busy = (others() - used) / (time.monotonic() - began)
    before, now = map(statistics.median, zip(*found, strict=True))
    ratios = f"{before / (base or before):.2f} | {now / (base or before):.2f}"
    print(f"| {name} | {before:.3f} | {now:.3f} | {ratios} | {wanted} | {busy:.2f} |", flush=True)
    return before


def measure(steps: int, setting: Any, trainings: int = 1, load: int = 0, **case: Any) -> float:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for _ in range(load):
            loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(loop.wait)
            stack.callback(loop.kill)
        runs, logs = [], [folder / f"r{number}" / "metrics.jsonl" for number in range(trainings)]
        for log in logs:
            command = [*case.get("words", []), sys.executable, "train.py", f"--steps={steps}"]
            command += [f"--run={log.parent.name}", f"--log-dir={folder}"]
            command += ["--preset=tiny", f"--checkpoint-dir={folder}/saved"]
            runs.append(subprocess.Popen(command, env=PLAIN | setting, stderr=subprocess.DEVNULL))
        if case.get("watched"):
            while not logs[0].exists():
                time.sleep(0.1)
            screen = stack.enter_context(Terminal(microscope(logs[0].parent), columns=160))
            while runs[0].poll() is None:
                screen.read(0.5)
        assert not any(run.wait() for run in runs)
        lines = [json.loads(line) for log in logs for line in log.open()]
    return statistics.mean(r["step_time_s"] for r in lines if "step_time_s" in r and r["step"] > 3)


def others() -> float:
    """Processor seconds of all programs so far, without ours that have ended."""
    ticks = list(map(int, Path("/proc/stat").read_text().split()[1:9]))
    busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:4])


if __name__ == "__main__":
    main()
