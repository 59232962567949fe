"""The trainer notices its own collapse, follows ``--on-collapse`` and says how to go back."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from microscope_tui.cli import main as microscope
from moe_model import read_checkpoint
from moe_model.training.checkpoint import newest_before
from tests.training.conftest import SHORT, GetTrained, Trained
from tests.training.story import Capsys, Log, ReadLog, Train, steps, story

COLLAPSE = ("--steps=70", "--force-collapse=2@5", "--save-every=1000", "--lr=1e-3")


@pytest.fixture
def stopped(copied: GetTrained) -> Trained:
    """A run that collapses from step 5 on, has a checkpoint of step 4, and stops."""
    return copied(*COLLAPSE, "--on-collapse=stop", after=SHORT)


def alerts(log: Log) -> Log:
    return [record for record in log if record.get("event") == "alert"]


def printed(narration: str, name: str) -> list[str]:
    """The words of the command that is called ``name``, as a shell has them."""
    (line,) = [line for line in narration.splitlines() if line.startswith(f"  {name}")]
    return shlex.split(line.removeprefix(f"  {name}"), comments=True)


def check(log: Path) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        microscope(["check", str(log)])
    return ended.value.code


def test_stop_saves_writes_the_verdict_and_exits_with_3(stopped: Trained) -> None:
    assert stopped.code == 3
    assert "CRIT" in stopped.narration
    assert "Router collapse in L2 since step 5" in stopped.narration
    assert "cause: forced with --force-collapse 2@5; explains COLLAPSE in L2" in stopped.narration
    assert "since step 5. Train a new run without --force-collapse." in stopped.narration
    (alert,) = alerts(stopped.log)
    last = stopped.log[-1]
    assert alert["step"] == last["step"] < 70
    assert alert["values"] == alert["values"] | {"severity": "crit", "layers": ["L2"], "onset": 5}
    assert (last["event"], last["reason"]) == ("end", "collapse")
    assert read_checkpoint(stopped.checkpoints / "latest").step == last["step"]
    assert check(stopped.folder / "logs" / "r") == 2, "check sees what the trainer saw"


def test_a_forced_collapse_sends_every_token_to_k_experts_from_that_step(stopped: Trained) -> None:
    for record in steps(stopped.log):
        healthy, forced = record["tokens_per_expert"]
        assert sum(count > 0 for count in healthy) > 2
        if record["step"] >= 5:
            assert forced == [record["tokens"]] * 2 + [0] * 6
            assert record["router"]["effective_experts"][1] == pytest.approx(2)
            assert record["expert_bias"][1] == [4.0, 4.0] + [0.0] * 6, "held"
        else:
            assert sum(count > 0 for count in forced) > 2


@pytest.mark.parametrize("method", ["bias", "aux", "none"])
def test_the_checkpoint_shows_the_forced_collapse(trained: GetTrained, method: str) -> None:
    run = trained(*COLLAPSE, f"--balance={method}", after=SHORT)
    model = read_checkpoint(run.checkpoints / "latest").load_model().eval()
    healthy, forced = model(torch.arange(24).view(2, 12)).routings
    assert healthy.expert_ids_TK.unique().numel() > 2
    assert forced.expert_ids_TK.unique().tolist() == [0, 1]
    found = [a["values"]["rule"] for a in alerts(run.log) if a["values"]["severity"] == "crit"]
    assert found == ["COLLAPSE"]


def test_going_back_names_a_checkpoint_before_the_onset(stopped: Trained, trainer: Any) -> None:
    command = printed(stopped.narration, "go back")
    assert command[:2] == ["python", "train.py"]
    named = Path(command[command.index("--resume") + 1])
    assert named.name == "previous"
    assert read_checkpoint(named).step == 4
    here = [word.replace(str(named.parents[2]), str(stopped.folder)) for word in command[2:]]
    assert trainer.run_command(trainer.app, [*here, "--steps=6"]) == 0, "as it was printed"
    assert read_checkpoint(stopped.checkpoints / "latest").step == 6


def test_a_run_stopped_on_a_collapse_resumes_only_with_on_collapse_log(
    stopped: Trained, train: Train, read_log: ReadLog, capsys: Capsys
) -> None:
    for name in ("previous", "best"):
        (stopped.checkpoints / name).unlink()
    step = read_log("r")[-1]["step"]
    for _ in range(2):
        assert train("--run=r", "--resume=auto") == 3, "a job that comes back must not train on"
        assert read_log("r")[-1] == read_log("r")[-1] | {"step": step, "reason": "collapse"}
        narration = capsys.readouterr().err
        assert "no checkpoint before step 5: start again with another setting" in narration
        assert printed(narration, "resume")[-2:] == ["--on-collapse", "log"]
    assert train("--run=r", "--resume=auto", "--on-collapse=log") == 0
    assert len(alerts(read_log("r"))) == 1
    assert read_log("r")[-1]["step"] == 70
    assert not (stopped.checkpoints / "collapse").exists()


def test_a_checkpoint_keeps_that_moment_and_training_continues(trained: GetTrained) -> None:
    """Counts of every tenth step are enough for the trainer and for ``check``."""
    whole = trained(*COLLAPSE, "--on-collapse=stop", after=SHORT)
    few = trained(*COLLAPSE, "--on-collapse=checkpoint", "--counts-every=10", after=SHORT)
    assert few.code == 0
    (alert,) = alerts(few.log)
    assert alert["step"] == whole.log[-1]["step"]
    assert read_checkpoint(few.checkpoints / "collapse").step == alert["step"]
    assert read_checkpoint(few.checkpoints / "latest").step == 70
    rows = steps(story(few.log))
    for key in ("expert_bias", "tokens_per_expert"):
        assert [row["step"] for row in rows if key in row] == [10, 20, 30, 40, 50, 60, 70]
    for one, other in zip(steps(story(whole.log)), rows, strict=False):
        assert one["router"] == other["router"], "the summaries are in every line"
        assert other.get("tokens_per_expert", one["tokens_per_expert"]) == one["tokens_per_expert"]
        assert other.get("expert_bias", one["expert_bias"]) == one["expert_bias"]
    assert check(few.folder / "logs" / "r") == 2


def test_the_newest_of_the_older_checkpoints_is_named(copied: GetTrained) -> None:
    folder = copied(*SHORT).checkpoints
    assert newest_before(folder, 5) == (folder / "latest", 4)
    assert newest_before(folder, 4) == (folder / "previous", 2)
    assert newest_before(folder, 2) is None
    (folder / "previous" / "checkpoint.json").write_text("{}")
    assert newest_before(folder, 4) is None, "a damaged one is not a way back"
    assert newest_before(folder / "nowhere", 6) is None
