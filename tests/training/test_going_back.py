"""Forks, and runs resumed from earlier steps: nothing is lost, nothing returns unasked."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from moe_model import read_checkpoint
from tests.forked import Program
from tests.training.story import KilledError, Log, before_step, die, story

Train = Callable[..., int]
ReadLog = Callable[[str], Log]


def trained(log: Log) -> list[int]:
    return [record["step"] for record in story(log) if record["kind"] == "step"]


def test_a_fork_that_dies_before_its_first_save_resumes_as_that_fork(
    trainer: ModuleType,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    read_log: ReadLog,
    tmp_path: Path,
) -> None:
    assert train("--run=r", "--steps=4") == 0
    with monkeypatch.context() as patch:
        before_step(trainer, patch, 5, die)
        with pytest.raises(KilledError):
            train("--run=fork", f"--resume={tmp_path / 'ck' / 'r'}", "--steps=6")
    assert train("--run=fork", "--resume=auto", "--steps=6") == 0
    assert trained(read_log("fork")) == [5, 6], "and not from random weights on"


def test_a_run_resumed_from_an_earlier_step_never_returns_to_the_abandoned_steps(
    trainer: ModuleType,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    read_log: ReadLog,
    tmp_path: Path,
) -> None:
    assert train("--run=r", "--steps=20", "--save-every=5", "--eval-every=20") == 0
    back = f"--resume={tmp_path / 'ck' / 'r' / 'previous'}"
    with monkeypatch.context() as patch:
        before_step(trainer, patch, 17, die)
        with pytest.raises(KilledError):
            train("--run=r", back, "--steps=30", "--save-every=500", "--eval-every=500")
    assert read_checkpoint(tmp_path / "ck" / "r").step == 15
    assert read_checkpoint(tmp_path / "ck" / "r" / "best").step == 20, "it is not thrown away yet"
    for resume in ("auto", str(tmp_path / "ck" / "r" / "latest")):
        with monkeypatch.context() as patch:
            before_step(trainer, patch, 18, die)
            with pytest.raises(KilledError):
                train("--run=r", f"--resume={resume}", "--steps=30", "--save-every=500")
        assert trained(read_log("r")) == [16, 17], resume


def test_a_run_is_trained_by_one_process_at_a_time(
    start: Callable[..., Program], train: Train, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    first = start("--run=r", "--steps=1000000", "--save-every=1", "--eval-every=1000000")
    deadline = time.monotonic() + 120
    while not (tmp_path / "ck" / "r" / "latest").exists():
        assert first.poll() is None, first.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert train("--run=r", "--resume=auto", "--steps=5000000") == 64
    assert "another process is training this run" in capsys.readouterr().err
    first.kill()
    first.communicate()
    step = read_checkpoint(tmp_path / "ck" / "r").step
    assert train("--run=r", "--resume=auto", f"--steps={step + 1}") == 0, "the lock died with it"


def test_a_start_that_is_refused_leaves_no_folder(train: Train, tmp_path: Path) -> None:
    assert train("--run=r", "--steps=2", f"--data={tmp_path / 'missing.txt'}") == 64
    assert not (tmp_path / "ck" / "r").exists()


def test_a_start_without_checkpoints_in_an_old_log_says_so(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--run=r", "--steps=2") == 0
    for folder in (tmp_path / "ck" / "r").glob("step-*"):
        shutil.rmtree(folder)
    capsys.readouterr()
    assert train("--run=r", "--steps=2", "--resume=auto") == 0
    narration = capsys.readouterr().err
    assert "latest points to a checkpoint that no longer exists" in narration
    assert "r starts at step 1" in narration


def test_a_fork_and_a_new_text_have_a_best_of_their_own(
    train: Train, text_file: Path, tmp_path: Path
) -> None:
    assert train("--run=r", "--steps=30", "--lr=0.01", "--eval-every=10") == 0
    worse = ("--steps=32", "--lr=0.5", "--eval-every=1")
    assert train("--run=fork", f"--resume={tmp_path / 'ck' / 'r'}", *worse) == 0
    assert read_checkpoint(tmp_path / "ck" / "fork" / "best").step > 30
    (tmp_path / "other.txt").write_text(text_file.read_text("utf-8")[::-1], "utf-8")
    assert train("--run=r", "--resume=auto", f"--data={tmp_path / 'other.txt'}", *worse) == 0
    assert read_checkpoint(tmp_path / "ck" / "r" / "best").step > 30


def test_what_is_not_ours_is_left_alone(train: Train, tmp_path: Path) -> None:
    assert train("--run=r", "--steps=2") == 0
    shutil.copytree(
        (tmp_path / "ck" / "r" / "latest").resolve(), tmp_path / "ck" / "r" / "step-keep"
    )
    assert train("--run=r", "--resume=auto", "--steps=6", "--save-every=1") == 0
    assert read_checkpoint(tmp_path / "ck" / "r" / "step-keep").step == 2


def test_a_switch_can_be_switched_off_when_a_run_goes_on(train: Train, read_log: ReadLog) -> None:
    assert train("--run=r", "--steps=2", "--activation-checkpointing") == 0
    assert train("--run=r", "--resume=auto", "--steps=3") == 0
    assert train("--run=r", "--resume=auto", "--steps=4", "--no-activation-checkpointing") == 0
    heads = [record for record in read_log("r") if record["kind"] == "run"]
    assert [head["config"]["activation_checkpointing"] for head in heads] == [True, True, False]


@pytest.mark.parametrize("wrong", ["--steps=1.5", "--seed=1.7", "--model.hidden_size=32.5"])
def test_a_broken_integer_is_refused_and_not_rounded(
    wrong: str, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(wrong) == 64
    assert "is not a whole number" in capsys.readouterr().err


def test_a_failed_start_does_not_block_the_next(train: Train, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("I am a file", "utf-8")
    assert train("--run=r", "--steps=2") == 1
    (tmp_path / "logs").unlink()
    assert train("--run=r", "--steps=2") == 0
