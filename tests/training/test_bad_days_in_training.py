"""Full disks, lost folders, impatient people: training survives what it can, else says one line."""

from __future__ import annotations

import errno
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from moe_model import read_checkpoint
from tests.forked import Program
from tests.training.story import Log, before_step

Train = Callable[..., int]


def full_disk_at(
    trainer: ModuleType, monkeypatch: pytest.MonkeyPatch, broken: Callable[[int], bool]
) -> None:
    def save(name: str, run: Any, *rest: Any) -> Any:
        if broken(run.progress.step):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(name, run, *rest)

    real = trainer.save_checkpoint
    monkeypatch.setattr(trainer, "save_checkpoint", save)


def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint_and_not_the_run(
    trainer: ModuleType,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    full_disk_at(trainer, monkeypatch, lambda step: 2 <= step <= 5)
    assert train("--run=r", "--steps=8", "--save-every=2", "--eval-every=100") == 0
    narration = capsys.readouterr().err
    assert "[Errno 28] No space left on device" in narration
    assert read_checkpoint(tmp_path / "ck" / "r").step == 8


def test_a_run_whose_last_checkpoint_cannot_be_written_has_failed(
    trainer: ModuleType,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    read_log: Callable[[str], Log],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    full_disk_at(trainer, monkeypatch, lambda step: step == 4)
    assert train("--run=r", "--steps=4", "--save-every=2", "--eval-every=100") == 1
    assert "r failed: [Errno 28] No space left on device" in capsys.readouterr().err
    assert read_log("r")[-1]["reason"] == "failed"
    assert read_checkpoint(tmp_path / "ck" / "r").step == 2, "what was there before still holds"


@pytest.mark.parametrize("kind", ["logs", "ck"])
def test_a_folder_that_cannot_be_made_is_one_clear_line(
    kind: str, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / kind).write_text("I am a file", "utf-8")
    assert train("--run=r", "--steps=2") == 1
    narration = capsys.readouterr().err
    assert "train.py: r failed: " in narration
    assert str(tmp_path / kind) in narration
    assert "Traceback" not in narration


def test_a_log_folder_that_is_deleted_is_made_again(
    trainer: ModuleType,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    read_log: Callable[[str], Log],
    tmp_path: Path,
) -> None:
    before_step(trainer, monkeypatch, 5, lambda: shutil.rmtree(tmp_path / "logs"))
    assert train("--run=r", "--steps=40") == 0
    log = read_log("r")
    assert log[0]["kind"] == "run", "the header comes first there as well"
    assert log[-1]["reason"] == "finished"


def test_a_checkpoint_folder_that_is_deleted_is_made_again(
    trainer: ModuleType, train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before_step(trainer, monkeypatch, 5, lambda: shutil.rmtree(tmp_path / "ck"))
    assert train("--run=r", "--steps=8", "--save-every=3", "--eval-every=100") == 0
    assert read_checkpoint(tmp_path / "ck" / "r").step == 8


def test_a_clock_that_goes_backwards_changes_nothing_but_the_times(
    train: Train, monkeypatch: pytest.MonkeyPatch, read_log: Callable[[str], Log]
) -> None:
    seconds = iter(range(2_000_000_000, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(seconds)))
    assert train("--run=r", "--steps=6") == 0
    log = read_log("r")
    assert [r["step"] for r in log if r["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    times = [record["time"] for record in log]
    assert times == sorted(times, reverse=True)


def test_the_second_ctrl_c_leaves_at_once_and_what_was_saved_still_holds(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """The step is made to last for ever, so that the first one has nothing to wait for."""
    process = start("--run=r", "--steps=1000000", "--save-every=1", "--eval-every=1000000")
    latest = tmp_path / "ck" / "r" / "latest"
    deadline = time.monotonic() + 120
    while not latest.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, narration = process.communicate(timeout=60)
    # Where the first one was through before the second came, the run ended properly.
    assert process.returncode in (1, 75), narration
    if process.returncode == 1:
        assert "was interrupted without saving" in narration
    assert "Traceback" not in narration
    assert read_checkpoint(tmp_path / "ck" / "r").load_model()
