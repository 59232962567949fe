"""The runs: each is a command that trains for minutes and writes one log."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SHAPE = (
    *("--device", "cpu", "--dtype", "fp32", "--data", "python-docs"),
    *("--batch-size", "8", "--seq-len", "96"),
    *("--model.hidden_size", "96", "--model.num_hidden_layers", "5"),
    *("--model.intermediate_size", "256", "--model.moe_intermediate_size", "64"),
    *("--model.num_attention_heads", "3"),
)
"""The tiny preset made smaller: four routers over eight experts, 0.1 s a step on one core."""


@dataclass(frozen=True, slots=True)
class Where:
    """What every run is given."""

    folder: Path
    """The log goes to ``folder/NAME/metrics.jsonl``."""
    scratch: Path
    """For what nobody needs later."""
    steps: int
    seed: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One run."""

    name: str
    about: str
    """What is done to it, and what that should lead to."""
    command: Callable[[str, Where], list[str]]


def trainer(*options: str) -> Callable[[str, Where], list[str]]:
    """``train.py`` with ``options``."""

    def command(name: str, where: Where) -> list[str]:
        often = str(max(1, where.steps // 4))
        return [
            *(sys.executable, str(ROOT / "train.py"), "--run", name, *SHAPE, *options),
            *("--steps", str(where.steps), "--seed", str(where.seed)),
            *("--eval-every", often, "--save-every", str(where.steps)),
            *("--log-dir", str(where.folder), "--checkpoint-dir", str(where.scratch)),
        ]

    return command


def module(script: str, *options: str) -> Callable[[str, Where], list[str]]:
    """A training loop of this package with ``options``."""

    def command(name: str, where: Where) -> list[str]:
        return [
            *(sys.executable, "-m", f"benchmarks.real.{script}", "--run", name, *options),
            *("--steps", str(where.steps), "--seed", str(where.seed)),
            *("--folder", str(where.folder), "--scratch", str(where.scratch)),
        ]

    return command


QWEN3 = ("--model", "qwen3-moe", "--experts", "16", "--top-k", "4", "--switch")

PLANS = [
    Plan("balanced-bias", "bias updates as the preset has them: nothing", trainer()),
    Plan(
        "hf-balanced",
        "Mixtral with an auxiliary loss for each layer: nothing",
        module("huggingface", "--aux-weight", "0.1", "--per-layer"),
    ),
    Plan(
        "hf-pooled-0.02",
        "Mixtral with its own auxiliary loss, which pools all layers: as the counts say",
        module("huggingface", "--aux-weight", "0.02"),
    ),
    Plan(
        "hf-pooled-0.5",
        "the same, 25 times as strong: as the counts say",
        module("huggingface", "--aux-weight", "0.5"),
    ),
    Plan(
        "unbalanced",
        "no balancing, learning rate x 5: LINT, and COLLAPSE where the counts say so",
        trainer("--balance", "none", "--lr", "5e-3"),
    ),
    Plan(
        "hf-unbalanced",
        "Mixtral without its auxiliary loss, high learning rate: as unbalanced",
        module("huggingface", "--aux-weight", "0", "--lr", "5e-3"),
    ),
    Plan("bias-1e-4", "a bias that hardly moves", trainer("--bias-update-rate", "1e-4")),
    Plan("bias-1e-3", "a bias that moves slowly", trainer("--bias-update-rate", "1e-3")),
    Plan("bias-5e-2", "a bias that moves in big steps", trainer("--bias-update-rate", "5e-2")),
    Plan("bias-1", "a bias larger than any score: OSCILLATION", trainer("--bias-update-rate", "1")),
    Plan(
        "top-1-normalised",
        "one expert a token, its weight divided by itself: LINT",
        trainer("--model.num_experts_per_tok", "1"),
    ),
    Plan("lr-x10", "learning rate x 10: whatever comes of it", trainer("--lr", "1e-2")),
    Plan(
        "lr-x100",
        "learning rate x 100: whatever comes of it, perhaps a divergence",
        trainer("--lr", "1e-1"),
    ),
    Plan(
        "data-switch",
        "Qwen3 MoE (16 experts, top 4), prose, then code from the middle on: nothing",
        module("huggingface", *QWEN3, "--aux-weight", "0.1", "--per-layer"),
    ),
    Plan(
        "data-switch-pooled",
        "the same with its own auxiliary loss at 0.02: as the counts say",
        module("huggingface", *QWEN3, "--aux-weight", "0.02"),
    ),
]


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
