"""How bad it was at worst, how it is now, and what was usual before: three different moments."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from microscope_tui.diagnosis import Advice, Diagnosis, Episode, advise, group, restore, save
from microscope_tui.lines import AlertState, Entry, unfolded
from microscope_tui.report import finding_json
from tests.diagnosis.conftest import COLLAPSED, of, without_expert

Make = Callable[..., Any]
HALF_WAY = [1400, 1400, 616, 400, 200, 60, 10, 10]
"""About half of the experts: c = 0.40, too little to count as recovered."""


def told(diagnosis: Diagnosis, rule: str, step: int | None = None) -> Advice:
    """The words of a rule, at a step of the past or at the end."""
    episodes = diagnosis.episodes
    if step is not None:
        episodes = [e.as_of(step) for e in episodes if e.onset <= step]
    (finding,) = [f for f in group(episodes) if f.rule == rule]
    return advise(finding, diagnosis.run, diagnosis.checkpoints, episodes)


@pytest.fixture
def relieved(judge: Make, steps: Make, make_header: Make, balanced: Make) -> Diagnosis:
    """Collapsed from 200, half recovered from 300 on."""

    def sick(n: int) -> list[int]:
        return balanced() if n < 200 else COLLAPSED if n < 300 else HALF_WAY

    return judge([make_header(), *steps(1, 600, sick)])


def test_the_worst_and_the_present_are_both_told_each_with_its_step(relieved: Diagnosis) -> None:
    said = told(relieved, "COLLAPSE")
    worst, _, now = said.why.partition(" Now ")
    assert worst.startswith("At worst (step 2")
    assert "2.0 of 8 experts effective (8.0 before); experts 0, 1 take 100% of the load" in worst
    assert now == "(step 600): 4.4 of 8 experts effective; experts 0, 1 take 68% of the load."
    assert said.short.endswith(": now 4.4 of 8 experts effective")


def test_json_keeps_the_worst_and_gains_the_present(relieved: Diagnosis) -> None:
    (finding,) = [f for f in relieved.findings() if f.rule == "COLLAPSE"]
    data = finding_json(finding, told(relieved, "COLLAPSE"))
    assert data["value"] == pytest.approx(0.0)
    assert data["worst_at"] < 300
    assert data["now"]["step"] == 600
    assert data["now"]["value"] == pytest.approx(0.4, abs=0.02)
    assert data["now"]["experts"] == [0, 1]


def test_the_unfolded_alert_names_both_values(relieved: Diagnosis) -> None:
    (finding,) = [f for f in relieved.findings() if f.rule == "COLLAPSE"]
    entry = Entry(finding, told(relieved, "COLLAPSE"), AlertState.ACTIVE, "key", seen=False)
    text = "\n".join("".join(span.text for span in line) for line in unfolded(entry, 80, 30))
    assert "0 < 0.15, the worst in L2; 0.402 now" in text


def test_at_an_earlier_step_the_present_of_the_end_is_not_told(relieved: Diagnosis) -> None:
    assert "Now (step" not in told(relieved, "COLLAPSE", 280).why
    assert of(relieved, "COLLAPSE").as_of(280).now is None
    assert of(relieved, "COLLAPSE").as_of(600).now == of(relieved, "COLLAPSE").now


def test_experts_that_came_back_are_not_listed_as_without_tokens(
    judge: Make, steps: Make, make_header: Make, balanced: Make
) -> None:
    def sick(n: int) -> list[int]:
        row = balanced()
        for expert in (3, 6) if 200 <= n < 451 else (3,) if n >= 451 else ():
            row[0], row[expert] = row[0] + row[expert], 0
        return row

    said = told(judge([make_header(), *steps(1, 800, sick)]), "DEAD")
    worst, _, now = said.why.partition(" Now ")
    assert "2 of 8 experts (3, 6) received no tokens" in worst
    assert "1 of 8 experts (3) received no tokens" in now


def test_other_experts_that_rest_now_are_no_number_of_the_dead_ones(
    judge: Make, steps: Make, make_header: Make, balanced: Make
) -> None:
    def sick(n: int) -> list[int]:
        row = without_expert(balanced(), 3 if n < 450 else 1)
        return without_expert(row, 6) if n < 450 else row

    said = told(judge([make_header(), *steps(1, 199), *steps(200, 468, sick)]), "DEAD")
    assert "2 of 8 experts (3, 6) received no tokens" in said.why
    assert "no tokens for at least 2" in said.why  # steps: since 200, at least to 440
    assert "0 of 8" not in said.why
    assert said.why.endswith("Now (step 464): within the limits.")


def test_a_recovered_finding_has_no_present(
    judge: Make, steps: Make, make_header: Make, balanced: Make
) -> None:
    sick = lambda n: COLLAPSED if 200 <= n < 300 else balanced()  # noqa: E731
    diagnosis = judge([make_header(), *steps(1, 500, sick)])
    assert of(diagnosis, "COLLAPSE").now is None
    assert "Now" not in told(diagnosis, "COLLAPSE").why


def test_what_is_no_worse_than_noise_is_told_once(
    judge: Make, steps: Make, make_header: Make, balanced: Make
) -> None:
    sick = lambda n: COLLAPSED if n >= 200 else balanced()  # noqa: E731
    assert "Now" not in told(judge([make_header(), *steps(1, 500, sick)]), "COLLAPSE").why


def test_the_present_is_saved_and_a_state_without_it_still_loads(relieved: Diagnosis) -> None:
    again = restore(save(relieved), relieved.run)
    assert of(again, "COLLAPSE").now == of(relieved, "COLLAPSE").now
    older = msgspec.msgpack.decode(save(relieved))
    older.pop("past")
    for episode in older["episodes"]:
        episode.pop("now")
    loaded = restore(msgspec.msgpack.encode(older), relieved.run)
    assert of(loaded, "COLLAPSE").now is None
    assert told(loaded, "COLLAPSE").verdict == told(relieved, "COLLAPSE").verdict


def test_a_restart_forgets_the_present(relieved: Diagnosis) -> None:
    relieved.restart(550)
    episode: Episode = of(relieved, "COLLAPSE")
    assert episode.active
    assert episode.now is None


def test_the_usual_value_is_that_from_before_a_slow_slide(scenario: Make, open_log: Make) -> None:
    for seed in range(4):
        folder = scenario("slow-collapse", seed, steps=1500)
        collapse = of(open_log(folder / "metrics.jsonl").diagnosis, "COLLAPSE")
        assert 7.6 <= collapse.facts["usual"] <= 8.0
