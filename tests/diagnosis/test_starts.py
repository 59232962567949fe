"""The start of a run: what heals early is information; what does not, or returns, is a warning."""

from collections.abc import Callable
from typing import Any

import pytest

from microscope_tui.diagnosis import Diagnosis, Severity, report
from tests.conftest import header
from tests.diagnosis.conftest import (
    COLLAPSED,
    Counts,
    Record,
    about,
    even,
    judge,
    loud,
    of,
    steps,
    without_expert,
)

UNEVEN = about([1500, 1200, 700, 300, 150, 100, 76, 70])  # c is .5, above a warning
LOW = about([1900, 1400, 400, 120, 80, 76, 64, 56])  # c is .27


def settling(last: int, low: Counts = LOW) -> Callable[[int], list[int]]:
    """A bias loop that begins unevenly and is even after ``last``."""
    return lambda n: low(n) if n <= last else even(n)


@pytest.mark.parametrize(("last", "warns"), [(250, False), (299, False), (300, True)])
def test_a_warning_that_heals_within_300_steps_of_the_start_is_information(
    last: int, warns: bool
) -> None:
    diagnosis = judge([header(), *steps(1, 480, settling(last))])
    found = of(diagnosis, "COLLAPSE")
    assert found.recovered_at == last + 2
    assert {e.rule for e in loud(diagnosis)} == ({"COLLAPSE"} if warns else set())


def drops(n: int) -> dict[str, Any]:
    return {"drop_rate": [0.1 if n <= 230 else 0.0] * 3}


@pytest.mark.parametrize(
    ("rule", "sick", "more"),
    [
        ("DEAD", lambda n: without_expert(even(n), 3) if n <= 220 else even(n), {}),
        ("DROPS", even, {"router": drops}),
    ],
)
def test_dead_experts_and_drops_of_a_start_are_information(
    rule: str, sick: Counts, more: Any
) -> None:
    diagnosis = judge([header(), *steps(1, 400, sick, **more)])
    assert {e.severity for e in diagnosis.episodes if e.rule == rule} == {Severity.INFO}


def test_a_start_excuses_nothing_critical_and_nothing_that_is_still_there() -> None:
    collapsed = judge([header(), *steps(1, 400, settling(200, lambda n: COLLAPSED))])
    assert of(collapsed, "COLLAPSE").severity is Severity.CRITICAL
    assert of(judge([header(), *steps(1, 290, LOW)]), "COLLAPSE").severity is Severity.WARN


def test_a_start_excuses_nothing_that_a_setting_explains() -> None:
    unbalanced = header(balance={"method": "none"})
    assert of(judge([unbalanced, *steps(1, 400, settling(200))]), "COLLAPSE").severity == 2


def resumed(*settles: bool) -> Diagnosis:
    """Resumed every 600 steps; whether the load is uneven for 150 steps each time."""
    records: list[Record] = [header(), *steps(1, 600)]
    for turn, uneven in enumerate(settles, start=1):
        at = 600 * turn
        records += [
            header(resumed_at_step=at + 1),
            *steps(at + 1, at + 600, settling(at + 150 * uneven)),
        ]
    return judge(records)


@pytest.mark.parametrize(
    ("settles", "warned"),
    [((True,), []), ((False, True), []), ((True, True), [1201]), ((True, False, True), [1801])],
)
def test_after_a_resume_only_the_first_time_is_excused(
    settles: tuple[bool, ...], warned: list[int]
) -> None:
    assert [e.onset for e in loud(resumed(*settles))] == warned


@pytest.mark.parametrize(
    ("balance", "named"),
    [
        ({"aux_weight": 0.5}, "aux_weight from 0.5"),
        ({"z_loss_weight": 0.05}, "z_loss_weight from 0.05"),
        ({"aux_weight": 0.01, "z_loss_weight": 0.001}, ""),
    ],
)
def test_a_loss_50_times_the_usual_that_leaves_no_preference_is_information(
    balance: dict[str, float], named: str
) -> None:
    readings = {"entropy": [2.078] * 3, "selected_mass": [0.2625] * 3, "grad_norm": [0.1] * 3}
    records = [
        header(balance={"method": "aux"} | balance),
        *steps(1, 640, grad_norm=lambda n: 1.0, router=lambda n: readings),
    ]
    found = report(judge(records))
    assert [f.severity for f, _ in found] == ([Severity.INFO] if named else [])
    for _, advice in found:
        assert "no preference left: selected mass 1.05 k/E" in advice.why
        assert named in advice.next
