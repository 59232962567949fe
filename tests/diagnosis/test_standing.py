"""Not judged is not healthy, and evidence that is building up is not health either."""

from collections.abc import Callable
from typing import Any

import pytest

from microscope_tui.diagnosis import Pending, gathering, pending, restore, save, warm_up_left
from microscope_tui.runlog import RouterInfo
from tests.diagnosis.conftest import COLLAPSED, of

Make = Callable[..., Any]
EVEN = [512, 500, 520, 516, 510, 514, 512, 512]


@pytest.mark.parametrize(("last", "until"), [(1, 100), (60, 100), (100, 100), (101, None)])
def test_a_run_is_judged_once_its_last_step_is_past_the_warm_up(
    judge: Make, steps: Make, make_header: Make, last: int, until: int | None
) -> None:
    assert warm_up_left(judge([make_header(), *steps(1, last)])) == until


def test_a_long_plan_has_a_longer_warm_up(judge: Make, steps: Make, make_header: Make) -> None:
    assert warm_up_left(judge([make_header(planned_steps=20_000), *steps(1, 200)])) == 400


def test_an_evaluation_is_judged_from_its_first_step(
    judge: Make, steps: Make, make_header: Make
) -> None:
    assert warm_up_left(judge([make_header(profile="eval"), *steps(1, 1)])) is None


def test_a_finding_in_the_warm_up_makes_a_run_judged(
    judge: Make, steps: Make, make_header: Make
) -> None:
    diagnosis = judge([make_header(), *steps(1, 80, lambda n: COLLAPSED)])
    assert of(diagnosis, "COLLAPSE").alarm <= 80  # urgent: no warm-up explains it
    assert warm_up_left(diagnosis) is None


def test_information_alone_judges_nothing(judge: Make, steps: Make, make_header: Make) -> None:
    diagnosis = judge([make_header(model={"norm_top_k": True}), *steps(1, 60)])
    assert warm_up_left(diagnosis) == 100


@pytest.mark.parametrize(
    ("resumed_at", "last", "until"),
    [
        (300, 310, None),  # judged before: the grace after a restart changes nothing
        (102, 110, None),
        (60, 80, 100),  # nothing that still holds was past the warm-up
        (1, 60, 100),  # a fresh start in the same folder
    ],
)
def test_a_resumed_run_stays_judged_as_long_as_what_was_judged_still_holds(
    judge: Make, steps: Make, make_header: Make, resumed_at: int, last: int, until: int | None
) -> None:
    again = [make_header(resumed_at_step=resumed_at), *steps(resumed_at, last)]
    assert warm_up_left(judge([make_header(), *steps(1, 320), *again])) == until


def test_a_resumed_run_with_a_longer_plan_stays_judged(
    judge: Make, steps: Make, make_header: Make
) -> None:
    again = [make_header(resumed_at_step=151, planned_steps=100_000), *steps(151, 160)]
    assert warm_up_left(judge([make_header(), *steps(1, 150), *again])) is None


def test_a_restored_judgement_stays_judged_in_the_grace_after_the_restart(
    judge: Make, steps: Make, make_header: Make
) -> None:
    before = judge([make_header(), *steps(1, 320)])
    after = restore(save(before), before.run)
    after.restart(300)
    assert after.warm_until == 399
    assert warm_up_left(after) is None


def test_at_a_step_of_the_past_a_run_was_judged_or_not(
    judge: Make, steps: Make, make_header: Make
) -> None:
    diagnosis = judge([make_header(), *steps(1, 300)])
    assert (warm_up_left(diagnosis, 60), warm_up_left(diagnosis, 150)) == (100, None)


def test_between_a_collapse_and_its_alarm_the_evidence_is_named(
    judge: Make, steps: Make, make_header: Make
) -> None:
    sick = steps(1, 212, lambda n: COLLAPSED if n >= 200 else EVEN)
    diagnosis = judge([make_header(), *sick])
    assert diagnosis.episodes == []
    (found,) = pending(diagnosis)
    assert (found.rule, found.router_index, found.since, found.steps) == ("COLLAPSE", 1, 200, 13)
    text = gathering([found], [0.9, 0.0, 0.9])
    assert text == "L2 at .00 for 13 steps, gathering evidence"


def test_the_stretch_is_as_long_as_the_layer_was_low_whatever_the_sum_still_holds(
    judge: Make, steps: Make, make_header: Make
) -> None:
    def counts(step: int) -> list[int]:
        if step <= 12:  # uneven at the start: its counts are summed from the first step on
            return [1500, 1500, 500, 296, 100, 100, 50, 50]
        return COLLAPSED if step >= 40 else EVEN

    diagnosis = judge([make_header(), *steps(1, 62, counts)])
    (found,) = pending(diagnosis)
    assert (found.rule, found.since, found.steps) == ("COLLAPSE", 40, 23)


def test_once_the_alarm_is_raised_no_evidence_is_pending_in_that_router(
    judge: Make, steps: Make, make_header: Make
) -> None:
    sick = steps(1, 240, lambda n: COLLAPSED if n >= 200 else EVEN)
    diagnosis = judge([make_header(), *sick])
    assert of(diagnosis, "COLLAPSE").active
    assert pending(diagnosis) == []


def test_layers_that_fall_together_are_one_sentence(
    judge: Make, make_step: Make, make_header: Make, balanced: Make
) -> None:
    records = [
        make_step(n, [COLLAPSED if n >= 200 else balanced() for _ in range(3)], 2048)
        for n in range(1, 211)
    ]
    found = pending(judge([make_header(), *records]))
    text = gathering(found, [0.0, 0.0, 0.0])
    assert text == "L1 at .00 and 2 more layers for 11 steps, gathering evidence"


def test_a_layer_that_is_even_in_this_step_is_not_named_with_its_balance_of_now() -> None:
    found = [Pending("COLLAPSE", "Router collapse", 1, RouterInfo("L2", 2, 128, 2), 457, 43)]
    text = gathering(found, [0.9, 0.97, 0.9])
    assert text == "L2 uneven in most of the last 43 steps, gathering evidence"


def test_other_evidence_goes_by_its_name(judge: Make, steps: Make, make_header: Make) -> None:
    exploding = steps(1, 304, router=lambda n: {"z_loss": [1.0, 1.0 if n <= 300 else 5.0, 1.0]})
    (found,) = pending(judge([make_header(), *exploding]))
    text = gathering([found], [0.9] * 3)
    assert text == "exploding router logits in L2 for 4 steps, gathering evidence"


@pytest.mark.parametrize("scenario_name", ["healthy", "small-batch", "specialised"])
def test_a_healthy_run_gathers_no_evidence(
    scenario: Make, open_log: Make, scenario_name: str
) -> None:
    path = scenario(scenario_name, routers=3, steps=200) / "metrics.jsonl"
    assert pending(open_log(path).diagnosis) == []
    assert gathering([], []) == ""
