"""Train what is missing: one process at a time, its output kept beside the log."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from benchmarks.real.plans import ROOT, Plan, Where

TIMEOUT_S = 3600


def log_of(plan: Plan, where: Where) -> Path:
    """Where the log of a plan is, or will be."""
    return where.folder / plan.name / "metrics.jsonl"


def is_finished(log: Path, steps: int) -> bool:
    """The log ends as planned, after so many steps."""
    try:
        last = json.loads(log.read_bytes().splitlines()[-1])
    except (OSError, IndexError, ValueError):
        return False
    return last.get("reason") == "finished" and last.get("step") == steps


def train(plan: Plan, where: Where, threads: int) -> str:
    """Train one run from its first step; what there is to say about it."""
    log = log_of(plan, where)
    shutil.rmtree(log.parent, ignore_errors=True)
    shutil.rmtree(where.scratch / plan.name, ignore_errors=True)
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    started = time.monotonic()
    done = subprocess.run(
        plan.command(plan.name, where),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
    )
    seconds = time.monotonic() - started
    if log.parent.is_dir():
        (log.parent / "output.txt").write_text(done.stdout)
    if done.returncode:
        last = (done.stdout.strip().splitlines() or ["no output"])[-1]
        return f"{plan.name}: exit code {done.returncode} after {seconds:.0f} s: {last[:200]}"
    return f"{plan.name}: trained in {seconds:.0f} s, {seconds / where.steps:.2f} s a step"
