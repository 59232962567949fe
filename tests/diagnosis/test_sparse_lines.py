"""Logs with a line for every tenth step and fewer: what is meant in steps still is."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from microscope_tui.diagnosis import Severity, overall
from microscope_tui.scenarios import draw_counts
from tests.diagnosis.conftest import of

Make = Callable[..., Any]
NARROW = [100.0, 40.0, 3.0, 1.5, 1.0, 1.0, 0.7, 0.6]
"""c about 0.18: uneven, steadily."""


@pytest.fixture
def records(make_header: Make, make_step: Make, balanced: Make) -> Make:
    """A run whose router in the middle draws by ``weights(step)``, a line every ``every`` steps."""

    def made(weights: Callable[[int], list[float]], every: int, last: int, **head: Any) -> Any:
        def row(step: int) -> list[int]:
            return draw_counts(weights(step), 2048, 2, random.Random(step))

        lines = range(every, last + 1, every)
        return [
            make_header(**head),
            *(make_step(n, [balanced(), row(n), balanced()], 2048) for n in lines),
        ]

    return made


def healing(step: int) -> list[float]:
    """Two experts lead from the start, less and less until step 480."""
    lead = 1.0 + 40.0 * max(0.0, 1.0 - step / 480)
    return [lead, lead, *[1.0] * 6]


@pytest.mark.parametrize("every", [1, 60, 100])
def test_a_router_that_was_never_seen_even_keeps_its_warm_up(
    judge: Make, records: Make, every: int
) -> None:
    diagnosis = judge(records(healing, every, 1500, planned_steps=100_000))
    assert overall(diagnosis.findings()) is Severity.INFO


def test_a_fall_from_even_counts_is_still_reported_in_the_warm_up_of_a_sparse_log(
    judge: Make, records: Make
) -> None:
    def falls(step: int) -> list[float]:
        return [1.0] * 8 if step <= 120 else [1.0, 1.0, *[1e-9] * 6]

    episode = of(judge(records(falls, 20, 500, planned_steps=100_000)), "COLLAPSE")
    assert (episode.onset, episode.severity) == (140, Severity.CRITICAL)
    assert episode.alarm < 300


@pytest.mark.parametrize("every", [1, 10, 100])
def test_a_steadily_narrow_fine_tuning_is_its_own_reference_however_rarely_it_logs(
    judge: Make, records: Make, every: int
) -> None:
    diagnosis = judge(records(lambda step: NARROW, every, 30 * max(every, 10), profile="finetune"))
    assert [e for e in diagnosis.episodes if e.rule == "COLLAPSE"] == []


def test_a_sparse_fine_tuning_that_collapses_is_still_reported(judge: Make, records: Make) -> None:
    def falls(step: int) -> list[float]:
        return NARROW if step <= 1000 else [1.0, 1.0, *[1e-9] * 6]

    episode = of(judge(records(falls, 100, 3000, profile="finetune")), "COLLAPSE")
    assert (episode.onset, episode.severity) == (1100, Severity.CRITICAL)
