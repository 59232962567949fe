"""Runs of seconds: a few thousand parameters on a short text that the test makes itself."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from moe_model.training import console
from tests.forked import ROOT, ForkServer, Program

SMALL = [
    "--model.hidden_size=32", "--model.num_hidden_layers=3", "--model.intermediate_size=48",
    "--model.moe_intermediate_size=16", "--model.num_attention_heads=2",
    "--model.kv_lora_rank=16", "--model.qk_nope_head_dim=8", "--model.qk_rope_head_dim=8",
    "--model.v_head_dim=8", "--model.max_position_embeddings=32",
    "--batch-size=4", "--device=cpu", "--dtype=fp32",
]  # fmt: skip


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """Some 4,000 characters with something to learn."""
    path = tmp_path / "text.txt"
    lines = [f"the {n} of {n * 7 % 13} routers sends token {n * n % 97}.\n" for n in range(100)]
    path.write_text("".join(lines), "utf-8")
    return path


@pytest.fixture
def arguments(tmp_path: Path, text_file: Path) -> Callable[..., list[str]]:
    """The command line of a small run that writes below the test's own folder; ``more`` wins."""
    folders = [f"--log-dir={tmp_path / 'logs'}", f"--checkpoint-dir={tmp_path / 'ck'}"]

    def make(*more: str) -> list[str]:
        flags = [f"--data={text_file}", *folders, *SMALL, *more]
        return list({flag.split("=")[0]: flag for flag in flags}.values())

    return make


@pytest.fixture(scope="session")
def trainer() -> Iterator[ModuleType]:
    """``train.py``, imported from where it is."""
    spec = importlib.util.spec_from_file_location("train", ROOT / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        # It takes longer than the steps of a short run.
        patch.setattr(console, "SAMPLE_TOKENS", 20)
        yield module


@pytest.fixture
def train(trainer: ModuleType, arguments: Callable[..., list[str]]) -> Callable[..., int]:
    """Run the trainer in this process; returns its exit code."""

    def run(*more: str) -> int:
        return trainer.run_command(trainer.app, arguments(*more))

    return run


@pytest.fixture
def start(fork_server: ForkServer, arguments: Callable[..., list[str]]) -> Callable[..., Program]:
    """Start the trainer in a process of its own."""
    return lambda *more: fork_server.start(str(ROOT / "train.py"), *arguments(*more))


def from_shell(*arguments: str, starter: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Start the trainer with an interpreter of its own."""
    return subprocess.Popen(
        [*starter, sys.executable, str(ROOT / "train.py"), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def read_log(tmp_path: Path) -> Callable[[str], list[dict[str, Any]]]:
    """Every complete line of a run's log, parsed strictly."""

    def read(run: str) -> list[dict[str, Any]]:
        text = (tmp_path / "logs" / run / "metrics.jsonl").read_text("utf-8")
        complete = text[: text.rfind("\n") + 1].splitlines()
        return [json.loads(line) for line in complete]

    return read
