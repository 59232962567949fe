"""Which rows belong to one step, and when a step is complete."""

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from microscope_tui.sources import step_rows
from microscope_tui.sources.keys import Target
from microscope_tui.sources.reader import Row
from microscope_tui.sources.step_rows import StepRows

LOSS, ENTROPY = Target("loss"), Target("entropy", 0)


def rows(*steps: int, target: Target = ENTROPY) -> list[Row]:
    return [Row(step, None, [(target, float(step))]) for step in steps]


def completed(steps: StepRows, *batches: Sequence[Row]) -> list[int]:
    """The steps that these rows complete, one batch after the other, and the last one."""
    found = [step for batch in batches for step in steps.complete(batch, is_started=True)]
    return [row.step for row, _ in (*found, *steps.close())]


@pytest.mark.parametrize("back", [1, 8, 16])
def test_a_run_that_resumes_a_few_steps_back_keeps_these_steps(back: int) -> None:
    first = range(1, 21)
    again = range(20 - back, 23)
    assert completed(StepRows(), rows(*first), rows(*again)) == [*first, *again]


@pytest.mark.parametrize(("back", "kept"), [(1, False), (16, False), (17, True)])
def test_a_loss_that_comes_up_to_16_steps_late_is_left_out(back: int, kept: bool) -> None:
    late = rows(20 - back, target=LOSS)
    expected = [20, *([20 - back] if kept else ()), 21]
    assert completed(StepRows(), rows(20), late, rows(21)) == expected


def test_a_late_loss_is_left_out_behind_a_step_that_was_complete_early() -> None:
    steps = StepRows()
    assert completed(steps, rows(20)) == [20]
    early = [*steps.complete(rows(30), is_started=True), *steps.close_early()]
    assert [row.step for row, _ in early] == [30]
    assert completed(steps, rows(29, target=LOSS)) == []


def test_many_rows_of_one_step_are_merged_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    merged, real = [0], step_rows._merged

    def counted(parts: Sequence[Row]) -> Row:
        merged[0] += 1
        return real(parts)

    monkeypatch.setattr(step_rows, "_merged", counted)
    many: Iterable[Row] = [Row(1, None, [(Target("entropy", n), 1.0)]) for n in range(1000)]
    steps = StepRows()
    assert not list(steps.complete([*many], is_started=True))
    assert 10 < merged[0] < 20  # neither for each row, nor all of them in the end
    ((row, _),) = steps.close()
    assert len(row.targets) == 1000


def test_a_step_of_one_row_is_that_row() -> None:
    steps = StepRows()
    (given,) = rows(1)
    assert not list(steps.complete([given], is_started=True))
    assert [row is given for row, _ in steps.close()] == [True]


@pytest.mark.parametrize("clock", ["time", "monotonic"])
def test_a_step_is_complete_once_it_rests_for_the_whole_pause(
    clock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now: dict[str, Any] = {"time": 1000.0, "monotonic": 1000.0}
    monkeypatch.setattr(step_rows, "time", SimpleNamespace(**{n: lambda n=n: now[n] for n in now}))
    monkeypatch.setattr(step_rows, "COMPLETE_AFTER_S", 0.5)
    steps = StepRows()
    assert not list(steps.complete(rows(1), is_started=True))
    assert not steps.is_quiet(1000.0)
    now[clock] += 0.25
    assert not steps.is_quiet(1000.0)
    now[clock] += 0.25
    assert steps.is_quiet(1000.0)
