"""Runs of three routers of 8 experts, top-2, from counts step by step to their diagnosis."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from microscope_tui.diagnosis import Diagnosis, Episode

Record = dict[str, Any]
COLLAPSED = [2048, 2048, 0, 0, 0, 0, 0, 0]


def without_expert(row: list[int], expert: int) -> list[int]:
    """What this expert had goes to its neighbour."""
    given = list(row)
    given[expert - 1] += given[expert]
    given[expert] = 0
    return given


def of(diagnosis: Diagnosis, rule: str) -> Episode:
    """The one episode of a rule."""
    (found,) = [episode for episode in diagnosis.episodes if episode.rule == rule]
    return found


@pytest.fixture
def judge(write_log: Any, open_log: Any) -> Callable[[Sequence[Record]], Diagnosis]:
    """The diagnosis of these records, through a file."""

    def judged(records: Sequence[Record]) -> Diagnosis:
        diagnosis: Diagnosis = open_log(write_log(records)).diagnosis
        return diagnosis

    return judged


@pytest.fixture
def steps(make_step: Any, balanced: Any) -> Callable[..., list[Record]]:
    """Steps ``first`` to ``last``; ``sick(step)`` gives the counts of the router in the middle."""

    def made(
        first: int,
        last: int,
        sick: Callable[[int], list[int]] | None = None,
        **changes: Callable[[int], Any],
    ) -> list[Record]:
        return [
            make_step(
                n,
                [balanced(), sick(n) if sick else balanced(), balanced()],
                2048,
                **{name: value(n) for name, value in changes.items()},
            )
            for n in range(first, last + 1)
        ]

    return made
