"""Full disks and lost folders: training survives what it can, else prints one line."""

import errno
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from moe_model import read_checkpoint
from tests.training.story import Capsys, ReadLog, Train, before_step


@pytest.fixture
def full_at(trainer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``full_at(2, 3)``: at these steps the disk is full."""

    def full(*broken: int) -> None:
        def save(name: str, run: Any, *rest: Any) -> Any:
            if run.progress.step in broken:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(name, run, *rest)

        real = trainer.save_checkpoint
        monkeypatch.setattr(trainer, "save_checkpoint", save)

    return full


def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint_and_not_the_run(
    full_at: Any, train: Train, tmp_path: Path, capsys: Capsys
) -> None:
    full_at(2, 3)
    assert train("--run=r", "--steps=5", "--save-every=2", "--eval-every=100") == 0
    assert "[Errno 28] No space left on device" in capsys.readouterr().err
    assert read_checkpoint(tmp_path / "ck" / "r").step == 5


def test_a_run_whose_last_checkpoint_cannot_be_written_has_failed(
    full_at: Any, train: Train, read_log: ReadLog, tmp_path: Path, capsys: Capsys
) -> None:
    full_at(4)
    assert train("--run=r", "--steps=4", "--save-every=2", "--eval-every=100") == 1
    assert "r failed: [Errno 28] No space left on device" in capsys.readouterr().err
    assert read_log("r")[-1]["reason"] == "failed"
    assert read_checkpoint(tmp_path / "ck" / "r").step == 2, "what was there before still holds"


def test_the_last_checkpoint_takes_the_room_of_the_previous_one(
    trainer: ModuleType, monkeypatch: Any, train: Train, tmp_path: Path, capsys: Capsys
) -> None:
    def save(name: str, run: Any, *rest: Any) -> Any:
        if run.progress.step == 6 and (tmp_path / "ck" / "r" / "step-00000002").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(name, run, *rest)

    real = trainer.save_checkpoint
    monkeypatch.setattr(trainer, "save_checkpoint", save)
    assert train("--run=r", "--steps=6", "--save-every=2", "--eval-every=100") == 0
    assert "No space left on device); free 516,288 bytes." in capsys.readouterr().err
    latest, previous = (read_checkpoint(tmp_path / "ck" / "r" / n) for n in ("latest", "previous"))
    assert (latest.step, previous.step) == (6, 4)


@pytest.mark.parametrize("kind", ["logs", "ck"])
def test_a_folder_that_cannot_be_made_is_one_clear_line_and_does_not_block_the_next_start(
    kind: str, train: Train, tmp_path: Path, capsys: Capsys
) -> None:
    (tmp_path / kind).write_text("I am a file", "utf-8")
    assert train("--run=r", "--steps=2") == 1
    narration = capsys.readouterr().err
    assert "train.py: r failed: " in narration
    assert str(tmp_path / kind) in narration
    assert "Traceback" not in narration
    (tmp_path / kind).unlink()
    assert train("--run=r", "--steps=2") == 0


@pytest.mark.parametrize("kind", ["logs", "ck"])
def test_a_folder_that_is_deleted_is_made_again(
    kind: str,
    trainer: ModuleType,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    read_log: ReadLog,
    tmp_path: Path,
) -> None:
    before_step(trainer, monkeypatch, 3, lambda: shutil.rmtree(tmp_path / kind))
    assert train("--run=r", "--steps=4", "--save-every=2", "--eval-every=100") == 0
    log = read_log("r")  # the header comes first there as well
    assert (log[0]["kind"], log[-1]["reason"]) == ("run", "finished")
    assert read_checkpoint(tmp_path / "ck" / "r").step == 4
