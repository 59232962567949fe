"""Forks, and runs resumed from earlier steps: nothing is lost, nothing returns unasked."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moe_model import read_checkpoint
from tests.forked import Program
from tests.training.conftest import SHORT, GetTrained
from tests.training.story import Capsys, Log, ReadLog, Train, flip_a_bit, steps, story, wait_until
from tests.training.test_training_runs import LEARNING


def trained_in(log: Log) -> list[int]:
    return [record["step"] for record in steps(story(log))]


def test_a_fork_that_dies_before_its_first_save_resumes_as_that_fork(
    trained: GetTrained, train: Train, train_until: Any, read_log: ReadLog
) -> None:
    train_until(5, "--run=fork", f"--resume={trained(*SHORT).checkpoints}", "--steps=6")
    assert train("--run=fork", "--resume=auto", "--steps=6") == 0
    assert trained_in(read_log("fork")) == [5, 6], "and not from random weights on"


def test_a_run_resumed_from_an_earlier_step_never_returns_to_the_abandoned_steps(
    copied: GetTrained, train_until: Any, read_log: ReadLog
) -> None:
    checkpoints = copied(*SHORT).checkpoints
    more = ("--steps=30", "--save-every=500", "--eval-every=500")
    train_until(4, "--run=r", f"--resume={checkpoints / 'previous'}", *more)
    assert read_checkpoint(checkpoints).step == 2
    assert read_checkpoint(checkpoints / "previous").step == 2, "where it was resumed from"
    assert read_checkpoint(checkpoints / "best").step == 4, "it is not thrown away yet"
    for resume in ("auto", str(checkpoints / "latest")):
        train_until(5, "--run=r", f"--resume={resume}", *more)
        assert trained_in(read_log("r")) == [3, 4], resume


def test_a_run_is_trained_by_one_process_at_a_time(
    start: Callable[..., Program], train: Train, tmp_path: Path, capsys: Capsys
) -> None:
    first = start("--run=r", "--steps=1000000", "--save-every=1", "--eval-every=1000000")
    wait_until((tmp_path / "ck" / "r" / "latest").exists, first)
    assert train("--run=r", "--resume=auto", "--steps=5000000") == 64
    assert "another process is training this run" in capsys.readouterr().err
    first.kill()
    first.communicate()
    step = read_checkpoint(tmp_path / "ck" / "r").step
    assert train("--run=r", "--resume=auto", f"--steps={step + 1}") == 0, "the lock died with it"


def test_a_start_anew_is_reported_also_in_an_old_log(
    train: Train, read_log: ReadLog, tmp_path: Path, capsys: Capsys
) -> None:
    assert train("--run=r", "--steps=1") == 0
    shutil.rmtree(tmp_path / "ck")
    for run in ("r", "frist"):
        assert train(f"--run={run}", "--steps=2", "--resume=auto") == 0
        assert f"ck/{run}: {run} starts at step 1.\n" in capsys.readouterr().err
    assert read_log("frist")[0]["resumed_at_step"] is None


def test_a_fork_a_mask_and_a_new_text_have_a_best_of_their_own(
    copied: GetTrained, train: Train, text_file: Path, tmp_path: Path
) -> None:
    checkpoints = copied(*LEARNING).checkpoints
    worse = ("--steps=112", "--lr=0.5", "--eval-every=1")
    assert train("--run=fork", f"--resume={checkpoints / 'latest'}", *worse) == 0
    assert read_checkpoint(tmp_path / "ck" / "fork" / "best").step > 110
    assert read_checkpoint(checkpoints / "best").step <= 110
    assert train("--run=r", "--resume=auto", "--document-mask", *worse) == 0
    assert read_checkpoint(checkpoints / "best").step > 110
    worse = ("--steps=114", *worse[1:])
    (tmp_path / "other.txt").write_text(text_file.read_text("utf-8")[::-1], "utf-8")
    assert train("--run=r", "--resume=auto", f"--data={tmp_path / 'other.txt'}", *worse) == 0
    assert read_checkpoint(checkpoints / "best").step > 112


def test_only_a_best_of_discarded_steps_is_forgotten(copied: GetTrained, train: Train) -> None:
    """Not one from before them, if the newest checkpoint is damaged."""
    checkpoints = copied(*SHORT, "--eval-every=1", "--keep=all").checkpoints
    worse = ("--steps=8", "--lr=0.5", "--clip=0")
    assert train("--run=r", "--resume=auto", *worse) == 0
    flip_a_bit(checkpoints / "latest" / "model.safetensors")
    assert train("--run=r", "--resume=auto", "--steps=8") == 0
    assert read_checkpoint(checkpoints / "best").description["options"]["lr"] == 3e-3
    assert train("--run=r", f"--resume={checkpoints / 'kept-00000002'}", *worse) == 0
    assert read_checkpoint(checkpoints / "best").description["options"]["lr"] == 0.5
