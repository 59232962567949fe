"""MISMATCH: the trainer and the engine that writes its text choose other experts."""

from pathlib import Path
from typing import Any

import pytest

from microscope_tui.commands.check.format_check import check_format, exit_code, format_text
from microscope_tui.probe import RunRecorder
from tests.conftest import header
from tests.diagnosis.conftest import judge, steps


@pytest.mark.parametrize(
    ("share", "profile", "onsets"),
    [
        (lambda n: 0.12, "pretrain", [1]),  # there is no warm-up
        (lambda n: 0.3, "eval", []),
        (lambda n: 0.5 if n % 25 == 0 else 0.03, "pretrain", []),  # single steps
        (lambda n: None, "pretrain", []),
        (lambda n: 7.0, "pretrain", []),  # not a share
    ],
)
def test_a_lasting_share_of_other_choices_is_reported_in_a_training(
    share: Any, profile: str, onsets: list[int]
) -> None:
    records = steps(1, 150, router=lambda n: {"disagreement": [0.01, share(n), None]})
    episodes = judge([header(profile=profile), *records]).episodes
    assert [e.onset for e in episodes if e.rule == "MISMATCH"] == onsets


def test_the_recorder_writes_the_share_and_the_format_check_reads_it(tmp_path: Path) -> None:
    model = {"layers": [1], "num_experts": 4, "top_k": 1}
    recorder = RunRecorder(tmp_path, run="rl", planned_steps=60, model=model, balance={})
    for step in range(1, 61):
        counts = [[100 + step % 7, 100 - step % 7, 104, 96]]
        router = {"disagreement": [0.25]}
        recorder.record_step(step=step, loss=2, tokens=400, tokens_per_expert=counts, router=router)
    assert [alert.rule for alert in recorder.alerts()] == ["MISMATCH"]
    recorder.close(step=60, reason="finished")
    log = tmp_path / "metrics.jsonl"
    assert exit_code(check_format(log)) == 0
    log.write_text(log.read_text().replace("0.25", "1.25"))
    report = check_format(log)
    assert exit_code(report) == 3
    assert "router.disagreement[0] is 1.25" in format_text(report)
