"""The history keeps every spike in bounded memory, and a restart replaces the future."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microscope_tui.watch.history import History

VALUES = st.lists(st.floats(-1e6, 1e6, width=32) | st.just(math.nan), min_size=1, max_size=300)


def history(values: list[float], capacity: int = 16) -> History:
    made = History({"x": 1}, capacity)
    for step, value in enumerate(values, start=1):
        made.add(step, {"x": [value]})
    return made


@settings(max_examples=200)
@given(VALUES, st.integers(1, 20))
def test_lowest_and_highest_value_survive_any_merging(values: list[float], count: int) -> None:
    made = history(values)
    finite = [value for value in values if value == value]
    columns = [c for c in made.columns("x", 0, count) if c.low == c.low]
    assert len(made) <= 16
    if finite:
        assert min(c.low for c in columns) == min(finite)
        assert max(c.high for c in columns) == max(finite)
    else:
        assert columns == []


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=200))
def test_means_stay_between_low_and_high(values: list[float]) -> None:
    for column in history(values).columns("x", 0, 7):
        assert column.low - 1e-6 <= column.mean <= column.high + 1e-6


def test_short_histories_keep_every_step() -> None:
    made = history([1.0, 2.0, 3.0])
    assert [(c.low, c.mean, c.high) for c in made.columns("x", 0, 10)] == [
        (1, 1, 1),
        (2, 2, 2),
        (3, 3, 3),
    ]


def test_columns_can_end_at_an_earlier_step() -> None:
    made = history([1.0, 2.0, 3.0, 4.0])
    assert [c.mean for c in made.columns("x", 0, 10, until=2)] == [1.0, 2.0]


def test_routers_do_not_mix() -> None:
    made = History({"x": 2}, 4)
    for step in range(1, 40):
        made.add(step, {"x": [step, -step]})
    assert all(c.low > 0 for c in made.columns("x", 0, 3))
    assert all(c.high < 0 for c in made.columns("x", 1, 3))


@pytest.mark.parametrize("values", [10, 100])
def test_a_restart_drops_the_superseded_future_and_is_remembered(values: int) -> None:
    made = history([1.0] * (values - 5) + [9.0] * 5)
    made.restart(3)
    for step in range(3, 8):
        made.add(step, {"x": [2.0]})
    assert made.restarts == [3]
    assert made.last_step == 7
    assert max(c.high for c in made.columns("x", 0, 50)) <= 2.0


def test_a_step_that_goes_backwards_is_a_restart() -> None:
    made = history([1.0, 1.0, 9.0, 9.0])
    made.add(3, {"x": [2.0]})
    assert made.restarts == [3]
    assert [c.mean for c in made.columns("x", 0, 10)] == [1.0, 1.0, 2.0]
