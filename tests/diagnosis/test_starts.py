"""The start of a run: what heals early is information; what does not, or returns, is a warning."""

from typing import Any

import pytest

from microscope_tui.diagnosis import Severity, report
from tests.conftest import header
from tests.diagnosis.conftest import COLLAPSED, about, even, judge, loud, of, steps, without_expert

LOW = about([1900, 1400, 400, 120, 80, 76, 64, 56])  # c is .27
BUSY = about([840, 830, 820, 810, 200, 200, 198, 198])
OVER = {"router": lambda n: {"drop_rate": [0.1 if n <= 230 else 0.0] * 3}}


def settling(last: int, low: Any = LOW) -> Any:
    """A bias loop that begins unevenly and is even after ``last``."""
    return lambda n: low(n) if n <= last else even(n)


@pytest.mark.parametrize(
    ("rule", "sick", "more", "severity"),
    [
        ("COLLAPSE", settling(280), {}, Severity.INFO),
        ("COLLAPSE", settling(299), {}, Severity.INFO),
        ("COLLAPSE", settling(300), {}, Severity.WARN),
        ("COLLAPSE", settling(280, lambda n: COLLAPSED), {}, Severity.CRITICAL),
        ("COLLAPSE", LOW, {}, Severity.WARN),
        ("DEAD", settling(220, lambda n: without_expert(even(n), 3)), {}, Severity.INFO),
        ("DROPS", even, OVER, Severity.INFO),
        ("OVERLOAD", settling(200, BUSY), {}, Severity.WARN),
    ],
)
def test_a_warning_of_four_rules_that_heals_within_300_steps_of_the_start_is_information(
    rule: str, sick: Any, more: Any, severity: Severity
) -> None:
    diagnosis = judge([header(expert_parallel_size=2), *steps(1, 400, sick, **more)])
    assert {e.severity for e in diagnosis.episodes if e.rule == rule} == {severity}


def test_a_start_excuses_nothing_that_a_setting_explains() -> None:
    unbalanced = header(balance={"method": "none"})
    later = lambda n: LOW(n) if 20 <= n < 200 else even(n)  # noqa: E731
    found = of(judge([unbalanced, *steps(1, 400, later)]), "COLLAPSE")
    assert found.severity is Severity.WARN


def test_a_setting_that_was_corrected_before_explains_nothing() -> None:
    low = lambda n: LOW(n) if 30 <= n <= 280 else even(n)  # noqa: E731
    corrected = header(balance={"method": "bias"}, resumed_at_step=10)
    records = [header(balance={"method": "none"}), *steps(1, 9), corrected, *steps(10, 400, low)]
    assert of(judge(records), "COLLAPSE").severity is Severity.INFO


def test_an_evaluation_has_no_start_that_could_excuse_a_collapse() -> None:
    evaluated = header(profile="eval")
    assert of(judge([evaluated, *steps(1, 400, settling(280))]), "COLLAPSE").warns


@pytest.mark.parametrize(
    ("uneven", "warned"), [((1,), []), ((0, 1), []), ((1, 1), [1201]), ((1, 0, 1), [1801])]
)
def test_resumes_excuse_only_the_first_time(uneven: tuple[int, ...], warned: list[int]) -> None:
    records = [header(), *steps(1, 600)]
    for turn, times in enumerate(uneven, start=1):
        at = 600 * turn
        records.append(header(resumed_at_step=at + 1))
        records += steps(at + 1, at + 600, settling(at + 150 * times))
    assert [e.onset for e in loud(judge(records))] == warned


@pytest.mark.parametrize(
    ("weights", "strong"),
    [
        ({"aux_weight": 0.5}, True),
        ({"z_loss_weight": 0.05}, True),
        ({"aux_weight": 0.01, "z_loss_weight": 0.001}, False),
    ],
)
def test_a_loss_50_times_the_usual_that_leaves_no_preference_is_information(
    weights: dict[str, float], strong: bool
) -> None:
    readings = {"entropy": [2.078] * 3, "selected_mass": [0.2625] * 3, "grad_norm": [0.1] * 3}
    learning = steps(1, 640, grad_norm=lambda n: 1.0, router=lambda n: readings)
    found = report(judge([header(balance={"method": "aux"} | weights), *learning]))
    assert [f.severity for f, _ in found] == [Severity.INFO] * strong
    assert all("no preference left: selected mass 1.05 k/E" in a.short for _, a in found)
