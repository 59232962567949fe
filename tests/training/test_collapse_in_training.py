"""The trainer notices its own collapse and follows ``--on-collapse``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from microscope_tui.cli import main as microscope
from moe_model import read_checkpoint
from tests.training.story import Log

Train = Callable[..., int]
COLLAPSE = ("--run=r", "--steps=90", "--force-collapse=2@5", "--save-every=1000", "--lr=1e-3")


def alerts(log: Log) -> Log:
    return [record for record in log if record.get("event") == "alert"]


def test_stop_saves_writes_the_verdict_and_exits_with_3(
    train: Train,
    read_log: Callable[[str], Log],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(*COLLAPSE, "--on-collapse=stop") == 3
    narration = capsys.readouterr().err
    assert "CRIT" in narration
    assert "Router collapse in L2 since step 5" in narration
    assert "verdict    CRITICAL COLLAPSE" in narration
    log = read_log("r")
    (alert,) = alerts(log)
    stopped_at = log[-1]["step"]
    assert alert["step"] == stopped_at < 90
    assert alert["values"] == alert["values"] | {"severity": "crit", "layers": ["L2"], "onset": 5}
    assert (log[-1]["event"], log[-1]["reason"]) == ("end", "collapse")
    assert read_checkpoint(tmp_path / "ck" / "r" / "latest").step == stopped_at
    with pytest.raises(SystemExit) as ended:
        microscope(["check", str(tmp_path / "logs" / "r")])
    assert ended.value.code == 2, "check sees what the trainer saw"


def test_a_run_stopped_on_a_collapse_resumes_only_with_on_collapse_log(
    train: Train, read_log: Callable[[str], Log], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*COLLAPSE, "--on-collapse=stop") == 3
    step = read_log("r")[-1]["step"]
    for _ in range(2):
        assert train("--run=r", "--resume=auto") == 3, "a job that comes back must not train on"
        assert read_log("r")[-1] == read_log("r")[-1] | {"step": step, "reason": "collapse"}
    assert "--on-collapse log" in capsys.readouterr().err
    assert train("--run=r", "--resume=auto", "--on-collapse=log") == 0
    assert len(alerts(read_log("r"))) == 1
    assert read_log("r")[-1]["step"] == 90


def test_checkpoint_keeps_the_state_of_that_moment_and_goes_on(
    train: Train, read_log: Callable[[str], Log], tmp_path: Path
) -> None:
    assert train(*COLLAPSE, "--on-collapse=checkpoint") == 0
    log = read_log("r")
    (alert,) = alerts(log)
    assert read_checkpoint(tmp_path / "ck" / "r" / "collapse").step == alert["step"]
    assert read_checkpoint(tmp_path / "ck" / "r" / "latest").step == 90


def test_on_collapse_log_only_alerts_and_training_continues(
    train: Train, read_log: Callable[[str], Log], tmp_path: Path
) -> None:
    assert train(*COLLAPSE) == 0
    assert len(alerts(read_log("r"))) == 1
    assert not (tmp_path / "ck" / "r" / "collapse").exists()


def test_a_healthy_run_raises_no_alert_and_is_not_stopped(
    train: Train, read_log: Callable[[str], Log], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--run=r", "--steps=110", "--on-collapse=stop") == 0
    assert not alerts(read_log("r"))
    assert "verdict    healthy" in capsys.readouterr().err
