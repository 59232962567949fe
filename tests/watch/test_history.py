"""The history: bounded, true at its extremes, and without the futures that were superseded."""

import math
import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings, strategies as st

from microscope_tui.watch import Column, History
from microscope_tui.watch.history import COARSE, MAX_ROWS, MIN_ROWS, Level, Series, rows_within

VALUES = st.lists(st.floats(-1e6, 1e6, width=32) | st.just(math.nan) | st.none(), max_size=300)


def history(
    values: Iterable[float | None], capacity: int = 16, stride: int = 1, commit_every: int = 7
) -> History:
    made = History({"x": 1}, capacity, stride)
    for step, value in enumerate(values, start=1):
        made = add(made, step, value, commit=step % commit_every == 0)
    made.commit()
    return made


def add(made: History, step: int, value: float | None, *, commit: bool = True) -> History:
    made.add(step, {"x": (value,)}, offset=step * 100)
    if commit:
        made.commit()
        if made.full:
            return made.halved()
    return made


def test_the_first_step_may_be_0() -> None:
    made = add(History({"x": 1}), 0, 2.0)
    assert len(made) == 1
    with pytest.raises(ValueError, match="step 0 after step 0"):
        made.add(0, {"x": (1.0,)})


def measured(columns: Iterable[Column]) -> list[Column]:
    return [column for column in columns if column.low == column.low]


@settings(max_examples=300)
@given(VALUES, st.integers(1, 20), st.sampled_from([1, 2, 8]), st.integers(1, 90))
def test_lowest_and_highest_value_survive_any_merging(
    values: list[float | None], count: int, stride: int, commit_every: int
) -> None:
    columns = measured(history(values, 16, stride, commit_every).columns("x", 0, count))
    finite = [value for value in values if value is not None and value == value]
    if finite:
        assert min(c.low for c in columns) == min(finite)
        assert max(c.high for c in columns) == max(finite)
    else:
        assert columns == []


@settings(max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(1, 3), st.floats(0, 1000, width=32)),
            st.tuples(st.just("restart"), st.floats(0, 1), st.just(0.0)),
            st.tuples(st.just("commit"), st.just(0), st.just(0.0)),
        ),
        max_size=250,
    ),
    st.sampled_from([1, 2, 4]),
)
def test_every_row_holds_the_extremes_of_exactly_its_surviving_steps(
    operations: list[tuple[str, float, float]], stride: int
) -> None:
    made, kept, last = History({"x": 1}, 32, stride), dict[int, float](), 0
    for operation, argument, value in operations:
        if operation == "add":
            last += int(argument)
            kept[last] = value
            made = add(made, last, value, commit=False)
        elif operation == "commit":
            made.commit()
            made = made.halved() if made.full else made
        elif last > 1:
            at = max(1, round(argument * last))
            torn = made.restart(at)
            kept = {step: v for step, v in kept.items() if step < at}
            for step in sorted(s for s in kept if torn is not None and s >= torn.step):
                made.add(step, {"x": (kept[step],)}, offset=step * 100)
            made.close_row()
            last = made.last_step = at - 1
    made.commit()
    ends = [*list(made.steps)[1:], 10**9][: len(made)]
    rows = made.columns("x", 0, len(made))
    assert len(rows) == len(made)
    for first, end, offset, row in zip(made.steps, ends, made.offsets, rows, strict=True):
        own = [v for step, v in kept.items() if first <= step < end]
        assert (row.low, row.high) == (min(own), max(own))
        assert offset == first * 100
    assert not kept or made.steps[0] == min(kept)


@given(st.integers(0, 999), st.sampled_from([1, 2, 4]), st.integers(1, 90), st.integers(1, 9))
def test_a_chart_drawn_meanwhile_changes_no_later_one(
    seed: int, stride: int, commit_every: int, count: int
) -> None:
    chance = random.Random(seed)
    values = [chance.choice([chance.random(), 2.0, None, math.nan]) for _ in range(40 + seed)]
    watched, made = (History({"x": 1}, 64, stride) for _ in range(2))
    for step, value in enumerate(values, start=1):
        watched, made = (
            add(h, step, value, commit=step % commit_every == 0) for h in (watched, made)
        )
        watched.columns("x", 0, count)
    for history in (watched, made):
        history.commit()
    for columns in (1, count, 64):
        assert repr(watched.columns("x", 0, columns)) == repr(made.columns("x", 0, columns))


@given(VALUES, st.sampled_from([1, 2, 4, 8]))
def test_a_row_is_the_mean_of_what_it_measured(values: list[float | None], stride: int) -> None:
    made = history(values, 512, stride, commit_every=stride)
    rows = made.columns("x", 0, len(made))
    for row, first in zip(rows, range(0, len(values), stride), strict=True):
        own = [v for v in values[first : first + stride] if v is not None and v == v]
        mean = sum(own) / len(own) if own else math.nan
        assert row.mean == pytest.approx(mean, rel=1e-5, abs=1e-2, nan_ok=True)


def test_the_mean_of_a_long_history_is_the_mean_of_its_steps() -> None:
    values = [float(n % 97) for n in range(4096)]
    for count in (1, 2, 5):
        columns = history(values, 8192).columns("x", 0, count)
        mean = sum(column.mean for column in columns) / count
        assert mean == pytest.approx(sum(values) / len(values), rel=0.01)


def test_what_was_added_shows_once_it_is_committed() -> None:
    made = History({"x": 1})
    made.add(1, {"x": (5.0,)})
    assert len(made) == 0
    made.commit()
    assert made.value("x", 0) == 5.0


def test_halving_leaves_the_old_history_to_its_readers() -> None:
    made = history([float(n) for n in range(40)], capacity=1000)
    other = made.halved()
    assert (len(made), len(other)) == (40, 20)
    assert made.columns("x", 0, 40)[39].low == 39.0
    assert other.stride == 2


def test_rows_follow_the_memory_within_bounds() -> None:
    assert rows_within(1 << 40, 10) == MAX_ROWS
    assert rows_within(1, 10) == MIN_ROWS
    small = rows_within(4 << 20, 291)
    assert MIN_ROWS < small < MAX_ROWS
    assert small * 291 * 12 < 4 << 20


def test_two_threads_make_the_same_coarse_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    series = Series(1)
    series.extend(range(64), 1)
    grouped, make = Level.grouped, series.keep_coarse
    monkeypatch.setattr(
        Level, "grouped", lambda *of: (monkeypatch.undo(), make(64), grouped(*of))[2]
    )
    make(64)
    assert len(series.coarse) == 64 // COARSE
