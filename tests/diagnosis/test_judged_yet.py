"""Not judged is not healthy, and evidence that is building up is not health either."""

from typing import Any

import pytest

from microscope_tui.diagnosis import Pending, gathering, pending, restore, save
from microscope_tui.diagnosis.engine import warm_up_left
from microscope_tui.runlog import RouterInfo
from tests.conftest import header, open_log
from tests.diagnosis.conftest import COLLAPSED, about, collapse_at, even, judge, of, steps


def healthy(last: int, **head: Any) -> Any:
    return judge([header(**head), *steps(1, last)])


@pytest.mark.parametrize(
    ("last", "head", "until"),
    [
        *((1, {}, 100), (100, {}, 100), (101, {}, None), (101, {"planned_steps": 20_000}, 400)),
        *((101, {"planned_steps": 50_000}, 500), (101, {"planned_steps": 90_000}, 500)),
        (1, {"profile": "eval"}, None),
        (60, {"model": {"norm_top_k": True}}, 100),
        (60, {"source": {"counts": "local_rank"}}, 100),  # information alone judges nothing
        (1, {"balance": {"method": "none"}}, None),  # a warning
    ],
)
def test_a_run_is_judged_past_its_warm_up_or_once_it_has_a_warning(
    last: int, head: dict[str, Any], until: int | None
) -> None:
    assert warm_up_left(healthy(last, **head)) == until


def test_an_urgent_finding_in_the_warm_up_makes_a_run_judged_from_its_onset_on() -> None:
    diagnosis = judge([header(), *steps(1, 95, collapse_at(20))])
    assert of(diagnosis, "COLLAPSE").alarm <= 95
    assert [warm_up_left(diagnosis, step) for step in (None, 20, 19)] == [None, None, 100]


@pytest.mark.parametrize(
    ("resumed_at", "last", "plan", "until"),
    [
        (300, 310, 500, None),  # judged before: the grace after a restart changes nothing
        (102, 110, 500, None),
        (151, 160, 100_000, None),  # nor does a longer plan
        (101, 110, 100_000, 500),
        (60, 110, 100_000, 500),  # what was judged is superseded, and the new plan is longer
        (60, 80, 500, 100),  # nothing that still holds was past the warm-up
        (1, 60, 500, 100),  # a fresh start in the same folder
    ],
)
def test_a_resumed_run_stays_judged_as_long_as_what_was_judged_still_holds(
    resumed_at: int, last: int, plan: int, until: int | None
) -> None:
    again = header(resumed_at_step=resumed_at, planned_steps=plan)
    records = [header(), *steps(1, 320), again, *steps(resumed_at, last)]
    assert warm_up_left(judge(records)) == until


def test_a_restored_judgement_stays_judged_in_the_grace_after_the_restart() -> None:
    before = healthy(320)
    assert (warm_up_left(before, 60), warm_up_left(before, 150)) == (100, None)  # in the past
    after = restore(save(before), before.run)
    after.restart(300)
    assert (after.warm_until, warm_up_left(after)) == (399, None)


def test_between_a_collapse_and_its_alarm_the_evidence_is_named() -> None:
    diagnosis = judge([header(), *steps(1, 212, collapse_at(200))])
    assert diagnosis.episodes == []
    (found,) = pending(diagnosis)
    assert (found.rule, found.router_index, found.since, found.steps) == ("COLLAPSE", 1, 200, 13)
    text = gathering([found], [0.9, 0.0, 0.9])
    assert text == "L2 at .00 for 13 steps, gathering evidence"
    text = gathering([found] * 3, [0.0] * 3)
    assert text == "L2 at .00 and 2 more layers for 13 steps, gathering evidence"
    assert pending(judge([header(), *steps(1, 240, collapse_at(200))])) == []  # it is an alarm now


def test_the_stretch_is_as_long_as_the_layer_was_low_whatever_the_sum_still_holds() -> None:
    def before(n: int) -> list[int]:  # uneven at the start: counts are summed from there on
        return [1500, 1500, 500, 296, 100, 100, 50, 50] if n <= 12 else even(n)

    (found,) = pending(judge([header(), *steps(1, 62, collapse_at(40, before))]))
    assert (found.rule, found.since, found.steps) == ("COLLAPSE", 40, 23)


def test_a_layer_that_is_even_in_this_step_is_not_named_with_its_current_balance() -> None:
    found = [Pending("COLLAPSE", 1, RouterInfo("L2", 2, 128, 2), 457, 43)]
    text = gathering(found, [0.9, 0.97, 0.9])
    assert text == "L2 uneven in most of the last 43 steps, gathering evidence"


def test_other_evidence_is_named_by_its_rule() -> None:
    exploding = steps(1, 304, router=lambda n: {"z_loss": [1.0, 1.0 if n <= 300 else 5.0, 1.0]})
    text = gathering(pending(judge([header(), *exploding])), [0.9] * 3)
    assert text == "exploding router logits in L2 for 4 steps, gathering evidence"
    spiking = steps(1, 304, grad_norm=lambda n: 1.0 if n <= 300 else 20.0)
    text = gathering(pending(judge([header(), *spiking])), [0.9] * 3)
    assert text == "gradient spike for 4 steps, gathering evidence"
    spiked = judge([header(), *spiking])
    spiked.conclude()
    assert gathering(pending(spiked), []) == "gradient spike for 4 steps, too few for an alert"


@pytest.mark.parametrize("name", ["healthy", "small-batch", "specialised"])
def test_a_healthy_run_gathers_no_evidence(scenario: Any, name: str) -> None:
    path = scenario(name, routers=3, steps=200) / "metrics.jsonl"
    assert gathering(pending(open_log(path).diagnosis), []) == ""


@pytest.mark.parametrize(
    ("before", "found"),
    [
        (lambda n: COLLAPSED if 150 <= n < 240 else even(n), [("COLLAPSE", 1)]),  # it is over
        (lambda n: even(n), [("COLLAPSE", 1)]),
        (lambda n: COLLAPSED if n >= 150 else even(n), []),  # it is reported
    ],
)
def test_evidence_is_pending_only_in_a_router_without_an_open_alert(
    before: Any, found: Any
) -> None:
    diagnosis = judge([header(), *steps(1, 420, lambda n: COLLAPSED if n > 400 else before(n))])
    assert [(one.rule, one.router_index) for one in pending(diagnosis)] == found


def test_an_open_note_does_not_hide_evidence_in_its_router() -> None:
    hot = about([2040, 500, 400, 300, 256, 220, 200, 180])
    known = judge([header(), *steps(1, 300, hot)])
    assert [(e.rule, e.warns, e.active) for e in known.episodes] == [("HOT_EXPERT", False, True)]
    falling = judge([header(), *steps(1, 320, lambda n: COLLAPSED if n > 300 else hot(n))])
    assert [(one.rule, one.router_index) for one in pending(falling)] == [("COLLAPSE", 1)]
