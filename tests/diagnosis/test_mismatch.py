"""MISMATCH: the trainer and the engine that writes its text choose other experts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.diagnosis import Severity, advise, group
from microscope_tui.probe import RunRecorder
from microscope_tui.report import check_format, format_text
from microscope_tui.report.format_check import exit_code
from tests.diagnosis.conftest import of

Make = Callable[..., Any]


def share(value: Callable[[int], float | None]) -> Any:
    return lambda n: {"disagreement": [0.01, value(n), None]}


@pytest.fixture
def found(judge: Make, steps: Make, make_header: Make) -> Make:
    """The episodes of MISMATCH in a run of 300 steps."""

    def run(value: Callable[[int], float | None], **header: Any) -> list[Any]:
        records = [make_header(**header), *steps(1, 300, router=share(value))]
        return [one for one in judge(records).episodes if one.rule == "MISMATCH"]

    return run


def test_a_tenth_of_other_choices_warns_in_its_layer_from_the_start(found: Make) -> None:
    (episode,) = found(lambda n: 0.12)
    assert (episode.router.name, episode.severity, episode.onset) == ("L2", Severity.WARN, 1)
    assert episode.limit == pytest.approx(0.10)


def test_twice_the_usual_share_warns_below_a_tenth(found: Make) -> None:
    (episode,) = found(lambda n: 0.05 if 150 <= n < 200 else 0.02)
    assert (episode.onset, episode.limit, episode.active) == (150, pytest.approx(0.04), False)


@pytest.mark.parametrize(
    "value",
    [
        lambda n: 0.09,
        lambda n: 0.019 if n > 100 else 0.001,  # rounding alone
        lambda n: 0.5 if n % 25 == 0 else 0.03,  # single steps
        lambda n: None,
        lambda n: 7.0,  # not a share
    ],
)
def test_what_is_usual_small_or_rare_is_silent(found: Make, value: Any) -> None:
    assert found(value) == []


def test_an_evaluation_is_not_judged(found: Make) -> None:
    assert found(lambda n: 0.3, profile="eval") == []


def test_the_advice_names_routing_replay(judge: Make, steps: Make, make_header: Make) -> None:
    diagnosis = judge([make_header(), *steps(1, 200, router=share(lambda n: 0.2))])
    of(diagnosis, "MISMATCH")
    ((finding),) = group(diagnosis.episodes)
    said = advise(finding, diagnosis.run)
    assert "20.0%" in said.why
    assert "routing replay" in said.next


def test_the_recorder_writes_the_share_and_the_format_check_reads_it(tmp_path: Path) -> None:
    model = {"layers": [1], "num_experts": 4, "top_k": 1}
    recorder = RunRecorder(tmp_path, run="rl", planned_steps=60, model=model, balance={})
    for step in range(1, 61):
        recorder.record_step(
            step=step,
            loss=2.0,
            tokens=400,
            tokens_per_expert=[[100 + step % 7, 100 - step % 7, 104, 96]],
            router={"disagreement": [0.25]},
        )
    assert [alert.rule for alert in recorder.alerts()] == ["MISMATCH"]
    recorder.close(step=60, reason="finished")
    log = tmp_path / "metrics.jsonl"
    assert '"disagreement":[0.25]' in log.read_text().replace(" ", "")
    assert exit_code(check_format(log)) == 0
    log.write_text(log.read_text().replace("0.25", "1.25"))
    report = check_format(log)
    assert exit_code(report) == 3
    assert "router.disagreement[0] is 1.25" in format_text(report)
