"""DIVERGED: a loss that is lost ends the run; a few lines of it, or one never measured, do not."""

from collections.abc import Callable
from typing import Any

import pytest

from microscope_tui.diagnosis import Diagnosis, Severity, overall, report
from tests.conftest import header
from tests.diagnosis.conftest import COLLAPSED, even, judge, loud, of, steps


def losing(last: int, lost: Callable[[int], bool], value: str = "NaN", **more: Any) -> Diagnosis:
    """The loss, and what is in ``more``, is ``value`` in these steps."""
    own = {name: lambda n, usual=usual: value if lost(n) else usual for name, usual in more.items()}
    return judge([header(), *steps(1, last, loss=lambda n: value if lost(n) else 2.0, **own)])


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_a_run_whose_loss_and_gradient_are_lost_has_diverged(value: str) -> None:
    diagnosis = losing(800, lambda n: n >= 500, value, grad_norm=1.0)
    (finding, advice), *_ = report(diagnosis)
    assert {e.rule for e in diagnosis.episodes} == {"DIVERGED", "GRADSPIKE"}
    assert (finding.rule, finding.onset, overall([finding])) == ("DIVERGED", 500, Severity.CRITICAL)
    what = "NaN" if value == "NaN" else "infinite"
    assert advice.cause == f"diverged at 500: the loss is {what}"
    assert advice.why == f"the loss is {what} in 301 lines in a row."
    assert advice.next.startswith("Go back to before step 500, lower the learning rate, and look")


@pytest.mark.parametrize(
    ("last", "severity"), [(500, Severity.INFO), (507, Severity.INFO), (508, Severity.CRITICAL)]
)
def test_the_ninth_line_in_a_row_decides(last: int, severity: Severity) -> None:
    found = of(losing(530, lambda n: 500 <= n <= last), "DIVERGED")
    assert (found.severity, found.onset, found.worst_at) == (severity, 500, last)


@pytest.mark.parametrize(
    ("more", "finite", "alarms"),
    [
        ({}, 0, False),
        ({}, 8, False),
        ({}, 9, True),
        ({"grad_norm": 1.0}, 0, True),
    ],
)
def test_a_loss_that_was_never_finite_is_not_measured_unless_more_is_lost(
    more: dict[str, Any], finite: int, alarms: bool
) -> None:
    diagnosis = losing(300, lambda n: n > finite, **more)
    found = of(diagnosis, "DIVERGED")
    assert (found.severity is Severity.CRITICAL) == alarms
    assert overall(finding for finding, _ in report(diagnosis)) is found.severity
    if not alarms:
        assert "it is not measured" in report(diagnosis)[0][1].why


def test_routers_that_compute_nan_are_a_consequence_and_their_sums_are_still_checked() -> None:
    def nan(n: int) -> dict[str, Any]:
        return {"entropy": ["NaN" if n >= 400 else 1.9] * 3}

    def run(row: list[int]) -> Diagnosis:
        lost = {"loss": lambda n: "NaN" if n >= 400 else 2.0, "router": nan}
        sick = lambda n: row if n >= 400 else even(n)  # noqa: E731
        return judge([header(), *steps(1, 600, sick, **lost)])

    explained = {f.rule: advice.cause for f, advice in report(run(COLLAPSED))}
    assert {explained["DIVERGED"], explained["COLLAPSE"]} == {"diverged at 400: the loss is NaN"}
    assert "METER" not in explained
    doubled = of(run([2 * count for count in COLLAPSED]), "METER")
    assert (doubled.router_index, doubled.facts["cause"]) == (1, "multiple")


def test_one_line_without_consequence_is_information() -> None:
    for more in ({}, {"grad_norm": 1.0}):
        diagnosis = losing(400, lambda n: n == 300, "Infinity", **more)
        assert loud(diagnosis) == []
        assert len(diagnosis.episodes) == 1 + len(more)


def test_a_spike_before_the_loss_is_lost_is_its_first_sign() -> None:
    lost = {"loss": lambda n: "NaN" if n >= 520 else 2.0}
    norms = {"grad_norm": lambda n: 60.0 if n == 515 else 1.0}
    spike = of(judge([header(), *steps(1, 600, **lost, **norms)]), "GRADSPIKE")
    assert spike.severity is Severity.CRITICAL
