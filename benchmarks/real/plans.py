"""The runs: each is a command that trains for minutes and writes one log."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """For files that are not needed later."""
    steps: int
    seed: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One run."""

    name: str
    about: str
    """What is done to it, and what that should lead to."""
    options: str = ""
    """Of ``train.py``, or of the loop around a Hugging Face model."""
    hugging_face: bool = False
    cures: str = ""
    """The run whose printed remedy this one follows."""

    def command(self, where: Where) -> list[str]:
        """What trains it."""
        own = ["--run", self.name, *self.options.split()]
        own += ["--steps", str(where.steps), "--seed", str(where.seed)]
        if self.hugging_face:
            module = ["-m", "benchmarks.real.huggingface", *own, "--folder", str(where.folder)]
            return [sys.executable, *module]
        often = str(max(1, where.steps // 4))
        return [
            *(sys.executable, str(ROOT / "train.py"), *SHAPE, *own),
            *("--eval-every", often, "--save-every", str(where.steps)),
            *("--log-dir", str(where.folder), "--checkpoint-dir", str(where.scratch)),
        ]


def _hf(name: str, about: str, options: str, cures: str = "") -> Plan:
    return Plan(name, about, options, True, cures)


QWEN3 = "--model qwen3-moe --experts 16 --top-k 4 --switch"
POOLED = "Mixtral with its own auxiliary loss, which pools all layers: by its counts"
UNBALANCED = "no balancing, learning rate x 5: LINT, and COLLAPSE where the counts show it"
ONE = "one expert a token, its weight divided by itself: LINT"
LARGE_RATE = "learning rate x 100: whatever comes of it, perhaps a divergence"
SWITCH = "Qwen3 MoE (16 experts, top 4), prose, then code from the middle on: nothing"

PER_LAYER = "Mixtral with an auxiliary loss for each layer: nothing"
WITHOUT = "Mixtral without its auxiliary loss, high learning rate: as unbalanced"
SWITCH_POOLED = "the same with its own auxiliary loss at 0.02: by its counts"
CURED = "the remedy that the report of another run prints: its cause is gone"
AUX = "--aux-weight 0.1 --lr 5e-3"
SOFTMAX = "--lr 5e-3 --model.scoring_func softmax --bias-update-rate"

PLANS = [
    Plan("balanced-bias", "bias updates as the preset has them: nothing"),
    _hf("hf-balanced", PER_LAYER, "--aux-weight 0.1 --per-layer"),
    _hf("hf-pooled-0.02", POOLED, "--aux-weight 0.02"),
    _hf("hf-pooled-0.5", "the same, 25 times as strong: by its counts", "--aux-weight 0.5"),
    Plan("unbalanced", UNBALANCED, "--balance none --lr 5e-3"),
    _hf("hf-unbalanced", WITHOUT, "--aux-weight 0 --lr 5e-3"),
    Plan("bias-1e-4", "a bias that hardly moves", "--bias-update-rate 1e-4"),
    Plan("bias-1e-3", "a bias that moves slowly", "--bias-update-rate 1e-3"),
    Plan("bias-5e-2", "a bias that moves in big steps", "--bias-update-rate 5e-2", cures="bias-1"),
    Plan("bias-1", "a bias larger than any score: OSCILLATION", "--bias-update-rate 1"),
    Plan("top-1-normalised", ONE, "--model.num_experts_per_tok 1"),
    Plan("lr-x10", "learning rate x 10: whatever comes of it", "--lr 1e-2"),
    Plan("lr-x100", LARGE_RATE, "--lr 1e-1"),
    _hf("hf-aux-off", "Mixtral whose auxiliary loss is not applied: LINT", f"{AUX} --aux-off"),
    _hf("hf-unbalanced-2e-3", "Mixtral without its auxiliary loss", "--aux-weight 0 --lr 2e-3"),
    _hf("hf-unbalanced-4e-2", "the same, at a rate that diverges", "--aux-weight 0 --lr 4e-2"),
    Plan("softmax-1e-5", "softmax scores and a bias that hardly moves", f"{SOFTMAX} 1e-5"),
    Plan("now-balanced", CURED, "--lr 5e-3", cures="unbalanced"),
    Plan("bias-2e-3", CURED, "--bias-update-rate 2e-3", cures="bias-1e-4"),
    Plan("softmax-8e-4", CURED, f"{SOFTMAX} 8e-4", cures="softmax-1e-5"),
    _hf("hf-aux-on", CURED, AUX, "hf-aux-off"),
    _hf("hf-aux-per-layer", CURED, f"{AUX} --per-layer", "hf-aux-on"),
    _hf("hf-unbalanced-4e-3", CURED, "--aux-weight 0 --lr 4e-3", "hf-unbalanced-4e-2"),
    _hf("data-switch", SWITCH, f"{QWEN3} --aux-weight 0.1 --per-layer"),
    _hf("data-switch-pooled", SWITCH_POOLED, f"{QWEN3} --aux-weight 0.02"),
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
    """Train one run from its first step; returns its report."""
    log = log_of(plan, where)
    shutil.rmtree(log.parent, ignore_errors=True)
    shutil.rmtree(where.scratch / plan.name, ignore_errors=True)
    environment = {"OMP_NUM_THREADS": f"{threads}", "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{ROOT}"}
    output: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    place: dict[str, Any] = {"cwd": ROOT, "env": os.environ | environment}
    started = time.monotonic()
    done = subprocess.run(plan.command(where), **place, **output, timeout=TIMEOUT_S)
    seconds = time.monotonic() - started
    if log.parent.is_dir():
        (log.parent / "output.txt").write_text(done.stdout)
    if done.returncode:
        last = (done.stdout.strip().splitlines() or ["no output"])[-1]
        return f"{plan.name}: exit code {done.returncode} after {seconds:.0f} s: {last[:200]}"
    return f"{plan.name}: trained in {seconds:.0f} s, {seconds / where.steps:.2f} s a step"
