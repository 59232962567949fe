"""Kill training runs with SIGKILL at random moments, resume them, and compare with one that ran on.

    python -m benchmarks.kill_and_resume [--kills 20] [--steps 120] [--dtype fp32|bf16] [--seed 0]
        [--threads 1|auto]  # auto: as train.py chooses

Checkpoints are written every other step, so that many kills hit one that is being written. What is
compared, bit for bit: every row of the log from the resume point on (losses, counts, biases,
events, alerts; not clock times, speeds and memory), and all files of the last checkpoint.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, options_of

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "--model.hidden_size=64", "--model.num_hidden_layers=3", "--model.intermediate_size=96",
    "--model.moe_intermediate_size=32", "--model.num_attention_heads=2",
    "--model.kv_lora_rank=32", "--model.qk_nope_head_dim=16", "--model.qk_rope_head_dim=16",
    "--model.v_head_dim=16", "--model.max_position_embeddings=64",
    "--batch-size=2", "--grad-accum=2", "--device=cpu", "--mtp", "--router-noise=0.05",
    "--capacity-factor=1.25", "--eval-every=4", "--save-every=2", "--force-collapse=2@40",
    "--on-collapse=checkpoint", "--data=python-docs:3", f"--data={ROOT}/README.md",
    "--document-mask",
]  # fmt: skip


def main() -> None:
    asked = options_of(__doc__, kills=20, steps=120, dtype="fp32", seed=0, threads="1")
    os.environ["OMP_NUM_THREADS"] = asked.threads
    if asked.threads == "auto":
        del os.environ["OMP_NUM_THREADS"]
    moment = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = [*SMALL, f"--steps={asked.steps}", f"--dtype={asked.dtype}"]
        started = time.monotonic()
        run_to_the_end(folder / "whole", flags)
        seconds = time.monotonic() - started
        print(machine())
        rows = len(records(folder / "whole"))
        print(f"{asked.steps} steps in {asked.dtype} without a kill: {seconds:.1f} s, {rows} rows")
        heads = ["kill", "at row", "then after", "rows logged", "resumed at step", "rows compared"]
        print("| " + " | ".join([*heads, "identical"]) + " |")
        print("|---" * 7 + "|")
        failures = 0
        for kill in range(1, asked.kills + 1):
            row, pause_s = moment.randrange(2, rows - 5), moment.uniform(0, 0.05)
            failures += not kill_once(folder, flags, kill, row, pause_s)
    print(f"{asked.kills - failures} of {asked.kills} resumed runs are identical, bit for bit")
    sys.exit(1 if failures else 0)


def kill_once(folder: Path, flags: list[str], kill: int, row: int, pause_s: float) -> bool:
    """One row of the table; whether the resumed run is the run that was never killed."""
    here = folder / f"kill-{kill}"
    process = start(here, flags)
    while process.poll() is None and (not log_of(here).exists() or len(records(here)) < row):
        time.sleep(0.002)
    time.sleep(pause_s)
    process.kill()
    process.communicate()
    logged = len(records(here))
    run_to_the_end(here, flags)
    first, compared = rows_from_the_resume(here)
    expected = [row for row in rows_from_the_resume(folder / "whole")[1] if row["step"] >= first]
    difference = next(
        (pair for pair in zip(expected, compared, strict=False) if pair[0] != pair[1]), None
    )
    if difference:
        print(*difference, sep="\n")
    same = compared == expected and last_checkpoint(here) == last_checkpoint(folder / "whole")
    facts = f"| {kill} | {row} | {pause_s * 1e3:.0f} ms | {logged} | {first} | {len(compared)} | "
    print(facts + ("yes |" if same else "NO |"), flush=True)
    shutil.rmtree(here)
    return same


def start(folder: Path, flags: list[str]) -> subprocess.Popen[str]:
    """The trainer below ``folder``; on a finished run it does nothing."""
    places = ["--log-dir=logs", "--checkpoint-dir=checkpoints"]
    command = [sys.executable, str(ROOT / "train.py"), "--run=r", "--resume=auto", *places, *flags]
    folder.mkdir(parents=True, exist_ok=True)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, **pipes)  # both logs have the same paths


def run_to_the_end(folder: Path, flags: list[str]) -> None:
    process = start(folder, flags)
    _, narration = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"exit code {process.returncode}:\n{narration}")


def log_of(folder: Path) -> Path:
    return folder / "logs" / "r" / "metrics.jsonl"


def records(folder: Path) -> list[dict[str, Any]]:
    text = log_of(folder).read_text("utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def rows_from_the_resume(folder: Path) -> tuple[int, list[dict[str, Any]]]:
    """First step, and all rows after the last run record without what depends on the clock."""
    every = records(folder)
    head = max(place for place, record in enumerate(every) if record["kind"] == "run")
    rows = [
        {k: v for k, v in row.items() if k != "time" and not k.endswith(("_s", "_bytes"))}
        for row in every[head + 1 :]
    ]
    return min(row["step"] for row in rows), rows


def last_checkpoint(folder: Path) -> dict[str, bytes]:
    """Every file; of the description not how often the run was started, nor its own checksum."""
    latest = (folder / "checkpoints" / "r" / "latest").resolve()
    files = {path.name: path.read_bytes() for path in sorted(latest.iterdir())}
    description = json.loads(files["checkpoint.json"])
    for key in ("life", "sha256"):
        description.pop(key, None)
    return {**files, "checkpoint.json": json.dumps(description).encode()}


if __name__ == "__main__":
    main()
