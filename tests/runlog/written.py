"""What tests of the writers share: small records, the contents of a log, and other processes."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

RUN = {"kind": "run", "run": "r"}


def step(number: int) -> dict[str, Any]:
    return {"kind": "step", "step": number}


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def steps(path: Path) -> list[int]:
    return [r["step"] for r in records(path) if r["kind"] == "step"]


def lost(path: Path) -> int:
    return sum(r["values"]["count"] for r in records(path) if r.get("event") == "lost_records")


HEAD = """
import os, signal, sys
from pathlib import Path
from microscope_tui.runlog.writer import BackgroundLog, RunLogWriter
path = Path(sys.argv[1])
"""


def run_python(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a process of its own; it must end well, and within a minute."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HEAD + textwrap.dedent(code), str(path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done
