"""The ledger: whether an uneven load came all at once, from what it was before the onset."""

from collections.abc import Sequence

import pytest

from microscope_tui.diagnosis.context import Context
from microscope_tui.diagnosis.episodes import Reading, Severity
from microscope_tui.diagnosis.ledger import Ledger
from microscope_tui.diagnosis.signals import StepView
from microscope_tui.runlog import RouterInfo, RouterSummary, RunRecord, StepRecord

ROUTERS = (RouterInfo("L1", 1, 8, 2),)
GONE = [512, 508, 516, 512, 0, 0, 0, 0]


def at_once(past: Sequence[float], counts: list[int]) -> bool:
    """Whether the last of these effective experts, one for every eighth step, came all at once."""
    ledger = Ledger(Context(RunRecord("r", ROUTERS)))
    for number, value in enumerate(past):
        for step in range(8 * number + 1, 8 * number + 9):
            record = StepRecord(step, router=RouterSummary(effective_experts=[value]))
            ledger.see(StepView(record, ROUTERS, lambda _: counts))
    reading = Reading(Severity.WARN, since=8 * past.index(min(past)) + 1)
    ledger.open("COLLAPSE", 0, 8 * len(past), reading)
    (episode,) = ledger.episodes
    return "at_once" in episode.facts


@pytest.mark.parametrize(
    ("between", "expected"),
    [([], True), ([6.0], True), ([6.5, 5.5], False), ([7.1, 4.9], True)],
)
def test_a_fall_with_two_values_on_the_way_is_slow(between: list[float], expected: bool) -> None:
    assert at_once([*[8.0] * 8, *between, *[4.0] * 6], GONE) == expected


@pytest.mark.parametrize(("before", "expected"), [(3, False), (4, True)])
def test_a_fall_is_compared_with_four_values_before_it(before: int, expected: bool) -> None:
    assert at_once([*[8.0] * before, *[4.0] * 6], GONE) == expected


def test_nothing_stopped_where_every_expert_still_has_some_of_the_load() -> None:
    few = [900, 904, 896, 900, 112, 112, 112, 112]  # an eighth of the busy ones
    assert not at_once([*[8.0] * 8, *[4.0] * 6], few)


def test_a_small_fall_is_not_that_of_the_experts_that_stopped() -> None:
    assert not at_once([*[8.0] * 8, *[6.9] * 6], GONE)
