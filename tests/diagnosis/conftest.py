"""Runs of three routers of 8 experts, top-2, from counts step by step to their diagnosis."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.commands.check.report import CheckRequest, Judgement, judge as check
from microscope_tui.diagnosis import Criteria, Diagnosis, Episode, Severity
from microscope_tui.runlog import RunFile, RunReader
from microscope_tui.watch.judge import Judge
from tests.conftest import step

Record = dict[str, Any]
Counts = Callable[[int], list[int]]
COLLAPSED = [2048, 2048, 0, 0, 0, 0, 0, 0]


def even(n: int, router: int = 0) -> list[int]:
    """Noisy counts around the fair share of 2,048 tokens, the same for the same step."""
    rng = random.Random(8 * n + router)
    counts = [512 + rng.randrange(-40, 41) for _ in range(8)]
    counts[0] += 4096 - sum(counts)
    return counts


def alternating(n: int) -> list[int]:
    """Each step alone has c = 0.33, the sum of two is even."""
    return [1024, 0] * 4 if n % 2 else [0, 1024] * 4


def collapse_at(onset: int, before: Counts = even) -> Counts:
    """Even, or as ``before``, until the onset."""
    return lambda n: COLLAPSED if n >= onset else before(n)


def about(row: Sequence[int]) -> Counts:
    """This row, but in no two lines the same; the sum of each pair of experts is kept."""

    def counts(n: int) -> list[int]:
        moved = [n * (pair + 2) % 7 - 3 for pair in range(len(row) // 2)]
        return [m + d for m, d in zip(row, (d for x in moved for d in (x, -x)), strict=True)]

    return counts


def without_expert(row: list[int], expert: int) -> list[int]:
    given = list(row)
    given[expert - 1] += given[expert]
    given[expert] = 0
    return given


def steps(first: int, last: int, sick: Counts = even, **changes: Any) -> list[Record]:
    """Steps ``first`` to ``last``; ``sick(step)`` gives the counts of the router in the middle."""
    found = []
    for n in range(first, last + 1):
        own = {name: value(n) for name, value in changes.items()}
        found.append(step(n, [even(n, 1), sick(n), even(n, 2)], 2048, **own))
    return found


def judge(records: Sequence[Record], criteria: Criteria | None = None) -> Diagnosis:
    judging = Judge("run", criteria or Criteria())
    for entry in RunReader("run").feed(b"".join(json.dumps(r).encode() + b"\n" for r in records)):
        judging.take(entry)
    return judging.diagnosis


@pytest.fixture
def judged(write_log: Any) -> Any:
    def read(records: Sequence[Any], **request: Any) -> Judgement:
        path: Path = write_log(records)
        return check(RunFile("run", path, 0.0), CheckRequest(**request))

    return read


def of(diagnosis: Diagnosis, rule: str) -> Episode:
    (found,) = [episode for episode in diagnosis.episodes if episode.rule == rule]
    return found


def loud(diagnosis: Diagnosis) -> list[Episode]:
    return [episode for episode in diagnosis.episodes if episode.severity > Severity.INFO]
