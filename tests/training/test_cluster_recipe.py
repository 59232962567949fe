"""The torchrun recipe of ``docs/cluster.md``, word for word, with stubs for torchrun and ranks."""

import os
import re
import subprocess
from pathlib import Path

import pytest

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "cluster.md"

TORCHRUN = """#!/bin/sh
# Every rank as torchrun starts it: in parallel, told its number; ends with 1 whatever they do.
while [ "$1" != --no-python ]; do shift; done
shift 2
rank=0
for code in $RANK_CODES; do
    RANK=$rank CODE=$code "$@" &
    rank=$((rank + 1))
done
wait
exit 1
"""
PYTHON = """#!/bin/sh
# A rank that ends with $CODE: above 128 by that signal.
[ "$CODE" -gt 128 ] && kill -$((CODE - 128)) $$
exit "$CODE"
"""


def blocks() -> tuple[str, str]:
    """``rank.sh``, and the commands around it."""
    section = GUIDE.read_text("utf-8").split("## With torchrun")[1].split("\n## ")[0]
    rank, commands = re.findall(r"```\w+\n(.*?)```", section, re.DOTALL)
    return rank, commands


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("ranks", "job"),
    [
        *(("0 0", 0), ("3 3", 3), ("3 143", 3), ("143 3", 3), ("64 143 143", 64)),
        *(("75 75", 75), ("75 143", 75), ("1 1", 1), ("1 137", 1), ("137 0", 137)),
        *(("143 143", 143), ("", 1)),
    ],
)
def test_the_job_ends_with_the_code_that_a_rank_chose(ranks: str, job: int, tmp_path: Path) -> None:
    rank, commands = blocks()
    (tmp_path / "rank.sh").write_text(rank)
    program(tmp_path / "torchrun", TORCHRUN)
    program(tmp_path / "python", PYTHON)
    place = {"NODE": "0", "MASTER_ADDR": "here", "TMPDIR": str(tmp_path), "RANK_CODES": ranks}
    done = subprocess.run(
        ["bash", "-c", commands],
        cwd=tmp_path, capture_output=True, text=True, timeout=30,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **place},
    )  # fmt: skip
    assert done.returncode == job, done.stderr
