"""The whole chain with known truth: train, collapse on purpose, run ``check``.

    python -m benchmarks.forced_collapse [--steps 300] [--full]

Trains the tiny preset healthily and with ``--force-collapse 3@100``, and prints the run logs
and the output of ``moe-microscope check``. ``--full`` adds the preset's own number of steps.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, options_of
from microscope_tui.measures import collapse_index


def main() -> None:
    options = options_of(__doc__, steps=300, full=False)
    runs = {
        "healthy": ["--steps", str(options.steps)],
        "forced": ["--steps", str(options.steps), "--force-collapse", "3@100"],
    }
    if options.full:
        runs["full preset"] = []
    print(machine())
    print(
        f"{'run':<12} {'steps':>6} {'min':>5} {'tok/s':>7} {'val loss':>16} {'lowest c':>9} "
        f"{'check':>6}  finding"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in runs.items():
            print(row(name, Path(folder), arguments), flush=True)


def row(name: str, folder: Path, arguments: list[str]) -> str:
    """Train one run and describe it in one line."""
    run = name.replace(" ", "-")
    started = time.monotonic()
    logs, checkpoints = folder / "logs", folder / "checkpoints"
    command = [sys.executable, "train.py", "--preset", "tiny", "--run", run, *arguments]
    command += ["--log-dir", str(logs), "--checkpoint-dir", str(checkpoints)]
    subprocess.run(command, check=True, capture_output=True)
    minutes = (time.monotonic() - started) / 60
    records = [json.loads(line) for line in (logs / run / "metrics.jsonl").open()]
    steps = [record for record in records if record["kind"] == "step"]
    model = records[0]["model"]
    for step in steps:
        expected = step["tokens"] * model["top_k"]
        assert all(sum(row) == expected for row in step["tokens_per_expert"]), step["step"]
    effective = steps[-1]["router"]["effective_experts"]
    lowest = min(collapse_index(e, model["num_experts"], model["top_k"]) or 0.0 for e in effective)
    losses = [r["values"]["loss"] for r in records if r.get("event") == "eval"]
    speeds = sorted(step["tokens_per_s"] for step in steps)
    command = [sys.executable, "-m", "microscope_tui.cli", "check", str(logs / run), "--json"]
    check = subprocess.run(command, capture_output=True, text=True)
    return (
        f"{name:<12} {len(steps):>6} {minutes:>5.1f} {speeds[len(speeds) // 2]:>7,.0f} "
        f"{losses[0]:>7.3f} → {losses[-1]:.3f} {lowest:>9.2f} {check.returncode:>6}  "
        f"{finding(json.loads(check.stdout))}"
    )


def finding(report: dict[str, Any]) -> str:
    """The findings of the only run of a report, in short."""
    found = []
    for f in report["runs"][0]["findings"]:
        where, dated = ", ".join(f["layers"]), f"onset {f['onset']}, alarm {f['alarm']}"
        found.append(f"{f['severity']} {f['rule']} in {where}, {dated}")
    return "; ".join(found) or "none"


if __name__ == "__main__":
    main()
