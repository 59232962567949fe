"""However a run ends, what it leaves behind can be read."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from moe_model.store import TRAINING_STATE, read_checkpoint

ENDLESS = ("--run=r", "--steps=1000000", "--eval-every=7", "--save-every=1")


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until ``path`` is there, or the process ended, or two minutes are over."""
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_kill_9_leaves_a_loadable_checkpoint_and_whole_lines(
    start: Callable[..., subprocess.Popen[str]],
    read_log: Callable[[str], list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    """Saving after every step, the kill most likely hits a checkpoint that is being written."""
    process = start(*ENDLESS)
    latest = tmp_path / "ck" / "r" / "latest"
    wait_for(latest, process)
    # While it is being replaced many times a second, every look at it must find a whole one.
    seen = set()
    for _ in range(20):
        seen.add(latest.readlink().name)
        assert latest.exists()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    checkpoint = read_checkpoint(tmp_path / "ck" / "r")
    assert checkpoint.load_model()
    assert load_file(checkpoint.folder / TRAINING_STATE)
    assert len(seen) > 1
    log = read_log("r")
    assert log[0]["kind"] == "run"
    assert max(r["step"] for r in log[1:]) >= checkpoint.step


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_ends_the_log_and_exits_75(
    number: signal.Signals,
    start: Callable[..., subprocess.Popen[str]],
    read_log: Callable[[str], list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    process = start("--run=r", "--steps=1000000", "--eval-every=1000000", "--save-every=1000000")
    wait_for(tmp_path / "logs" / "r" / "metrics.jsonl", process)
    time.sleep(0.3)
    process.send_signal(number)
    output, narration = process.communicate(timeout=60)
    assert process.returncode == 75, narration
    assert f"{number.name}: finishing this step, then saving" in narration
    assert "Traceback" not in narration
    assert output == ""
    log = read_log("r")
    last_step = [r["step"] for r in log if r["kind"] == "step"][-1]
    assert log[-1] == log[-1] | {"event": "end", "reason": "signal", "step": last_step}
    assert read_checkpoint(tmp_path / "ck" / "r" / "latest").step == last_step
