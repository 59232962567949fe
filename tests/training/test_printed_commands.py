"""What the trainer prints can be pasted: commands that run, and checkpoints that are there."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from moe_model import read_checkpoint
from moe_model.training import newest_before

Train = Callable[..., int]


def printed(narration: str, name: str) -> str:
    """The place that is called ``name``."""
    (line,) = [line for line in narration.splitlines() if line.startswith(f"  {name}")]
    return line.removeprefix(f"  {name}").strip()


def words(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def test_going_back_names_a_checkpoint_that_is_older_than_the_onset(
    train: Train, trainer: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--run=r", "--steps=150", "--force-collapse=2@61", "--save-every=60", "--lr=1e-3")
    assert train(*flags, "--on-collapse=stop", "--eval-every=1000") == 3
    command = words(printed(capsys.readouterr().err, "go back"))
    assert command[:2] == ["python", "train.py"]
    named = Path(command[command.index("--resume") + 1])
    assert named == tmp_path / "ck" / "r" / "previous"
    assert read_checkpoint(named).step == 60
    assert trainer.run_command(trainer.app, [*command[2:], "--steps=62"]) == 0, "as it stands"
    assert read_checkpoint(tmp_path / "ck" / "r" / "latest").step == 62


def test_where_every_checkpoint_is_inside_the_collapse_none_is_named(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--run=r", "--steps=90", "--force-collapse=2@5", "--save-every=10", "--lr=1e-3")
    assert train(*flags, "--on-collapse=stop") == 3
    narration = capsys.readouterr().err
    assert printed(narration, "go back") == (
        "no checkpoint before step 5: start again with another setting"
    )
    assert words(printed(narration, "resume"))[-2:] == ["--on-collapse", "log"]


def test_a_finished_run_says_how_to_try_it(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--run=a run", "--steps=3") == 0
    command = words(printed(capsys.readouterr().err, "try it"))
    assert command[:3] == ["python", "-m", "moe_model.generate"]
    assert command[3:] == [str(tmp_path / "ck" / "a run" / "best")]


def test_the_newest_of_the_older_checkpoints_is_named(train: Train, tmp_path: Path) -> None:
    assert train("--run=r", "--steps=6", "--save-every=2", "--eval-every=1000") == 0
    folder = tmp_path / "ck" / "r"
    assert newest_before(folder, 7) == (folder / "latest", 6)
    assert newest_before(folder, 6) == (folder / "previous", 4)
    assert newest_before(folder, 4) is None
    (folder / "previous" / "checkpoint.json").write_text("{}")
    assert newest_before(folder, 6) is None, "a damaged one is none to go back to"
    assert newest_before(tmp_path / "nowhere", 6) is None
