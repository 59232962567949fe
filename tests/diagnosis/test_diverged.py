"""DIVERGED: a loss that is lost ends the run; a few lines of it, or one never measured, do not."""

from collections.abc import Callable
from typing import Any

import pytest

from microscope_tui.diagnosis import Diagnosis, Severity, overall, report
from tests.conftest import header
from tests.diagnosis.conftest import COLLAPSED, even, judge, loud, of, steps


def losing(last: int, lost: Callable[[int], bool], value: str = "NaN", **more: Any) -> Diagnosis:
    """The loss, and what is in ``more``, is ``value`` in these steps."""
    usual = {"loss": 2.0, **more}
    own = {name: lambda n, usual=x: value if lost(n) else usual for name, x in usual.items()}
    return judge([header(), *steps(1, last, **own)])


@pytest.mark.parametrize(("value", "words"), [("NaN", "NaN"), ("Infinity", "infinite")])
def test_a_run_whose_loss_and_gradient_are_lost_has_diverged(value: str, words: str) -> None:
    diagnosis = losing(800, lambda n: n >= 500, value, grad_norm=1.0)
    (finding, advice), *_ = report(diagnosis)
    assert {e.rule for e in diagnosis.episodes} == {"DIVERGED", "GRADSPIKE"}
    assert (finding.rule, finding.onset, overall([finding])) == ("DIVERGED", 500, Severity.CRITICAL)
    assert advice.cause == f"diverged at 500: the loss is {words}"
    assert advice.why == f"the loss is {words}, it was 2 before."
    assert advice.next.startswith("Go back to before step 500, lower the learning rate, and look")


@pytest.mark.parametrize(("last", "severity"), [(507, Severity.INFO), (508, Severity.CRITICAL)])
def test_the_ninth_line_in_a_row_decides(last: int, severity: Severity) -> None:
    lost = lambda n: 500 <= n <= last or n == last + 2  # noqa: E731
    found = of(losing(530, lost), "DIVERGED")
    assert (found.severity, found.onset) == (severity, 500)


@pytest.mark.parametrize(
    ("more", "finite", "alarms"),
    [({}, 0, False), ({}, 8, False), ({}, 9, True), ({"grad_norm": 1.0}, 0, True)],
)
def test_a_loss_that_was_never_finite_is_not_measured_unless_more_is_lost(
    more: dict[str, Any], finite: int, alarms: bool
) -> None:
    diagnosis = losing(300, lambda n: n > finite, **more)
    finding, advice = report(diagnosis)[0]
    assert overall([finding]) == (Severity.CRITICAL if alarms else Severity.INFO)
    assert ("the loss is not measured" in advice.why) != alarms


def test_a_loss_that_is_logged_every_twentieth_line_is_not_lost() -> None:
    diagnosis = losing(400, lambda n: n % 20 > 0)
    assert not loud(diagnosis)
    assert report(diagnosis)[0][1].next == "Log the loss in every line, or in none."


def test_routers_that_compute_nan_are_a_consequence_and_their_sums_are_still_checked() -> None:
    def run(row: list[int]) -> Diagnosis:
        lost = {"loss": lambda n: "NaN" if n >= 400 else 2.0}
        lost["router"] = lambda n: {"entropy": ["NaN" if n >= 400 else 1.9] * 3}
        return judge([header(), *steps(1, 600, lambda n: row if n >= 400 else even(n), **lost)])

    explained = {f.rule: advice.cause for f, advice in report(run(COLLAPSED))}
    assert {explained["DIVERGED"], explained["COLLAPSE"]} == {"diverged at 400: the loss is NaN"}
    assert "METER" not in explained
    assert of(run([2 * count for count in COLLAPSED]), "METER").facts["cause"] == "multiple"


def test_one_line_without_consequence_is_information() -> None:
    diagnosis = losing(400, lambda n: n == 300, "Infinity", grad_norm=1.0)
    assert {e.rule for e in diagnosis.episodes} == {"DIVERGED", "GRADSPIKE"}
    assert loud(diagnosis) == []


def test_a_spike_before_the_loss_is_lost_is_its_first_sign() -> None:
    courses = {"loss": lambda n: "NaN" if n >= 520 else 2.0}
    courses |= {"grad_norm": lambda n: 60.0 if n == 515 else 1.0}
    spike = of(judge([header(), *steps(1, 600, **courses)]), "GRADSPIKE")
    assert spike.severity is Severity.CRITICAL
