"""Levels that are held: never far from the truth, never late for the dead, deaf to noise."""

import math

import pytest
from hypothesis import assume, given, strategies as st

from microscope_tui.draw.glyphs import FAIR_WITHIN, HOT_LEVEL, is_calm, shade_level
from microscope_tui.draw.steady import CALM_HYSTERESIS, HYSTERESIS, MOST_KEYS, SteadyLevels

OCTAVES = st.floats(-6, 6)
LOAD = st.just(0.0) | OCTAVES.map(lambda octaves: 2.0**octaves)
WALK = st.lists(LOAD, min_size=1, max_size=40)
CALM_EDGES = (-0.7, -FAIR_WITHIN, FAIR_WITHIN, 0.65)


def edges(level: int) -> tuple[float, float]:
    """The octaves from which to which a level is the true one, worked out independently."""
    if abs(level) <= 1:
        return CALM_EDGES[level + 1], CALM_EDGES[level + 2]
    low, high = (level - 0.5) / 4, (level + 0.5) / 4
    if level > 0:
        return max(low, 0.65), math.inf if level == 16 else high
    return -math.inf if level == -16 else low, min(high, -0.7)


@given(LOAD)
def test_the_first_level_is_that_of_the_load_alone(load: float) -> None:
    if load > 0:  # on an edge itself either side will do
        octaves = math.log2(load)
        assume(abs((4 * octaves) % 1 - 0.5) > 1e-9)
        assume(all(abs(octaves - edge) > 1e-9 for edge in CALM_EDGES))
    assert SteadyLevels().levels("L1", [load]) == [shade_level(load)]


@pytest.mark.parametrize("load", [0.0, -1.0, math.nan, math.inf, 5e-324, 2**0.65, 2**-0.7])
def test_odd_loads_have_the_level_that_they_should(load: float) -> None:
    expected = 16 if load == math.inf else shade_level(load)
    assert SteadyLevels().levels("L1", [load]) == [expected]


@given(WALK)
def test_a_level_is_never_further_from_the_load_than_the_hysteresis(walk: list[float]) -> None:
    steady = SteadyLevels()
    for load in walk:
        (level,) = steady.levels("L1", [load])
        assert (level is None) == (load == 0)
        if level is not None:
            low, high = edges(level)
            reach = CALM_HYSTERESIS if abs(level) <= 1 else HYSTERESIS
            assert low - reach - 1e-9 <= math.log2(load) <= high + reach + 1e-9


@given(WALK)
def test_a_level_changes_only_to_the_true_one(walk: list[float]) -> None:
    steady, before = SteadyLevels(), None
    for load in walk:
        shown = steady.levels("L1", [load])
        if shown != before:
            true = SteadyLevels().levels("L1", [load])
            held = before is not None and is_calm(*before) and is_calm(*shown)
            assert shown == true or (held and not is_calm(*true))
        before = shown


@given(
    st.sampled_from([-3.5, -2.8, 2.6, 3.5, 7.5, 12.5]),
    st.lists(st.floats(-0.062, 0.062), min_size=2, max_size=60),
)
def test_noise_around_an_edge_repaints_nothing(edge: float, noise: list[float]) -> None:
    steady = SteadyLevels()
    rows = [steady.levels("L1", [2 ** (edge / 4 + tremble)]) for tremble in noise]
    assert rows == [rows[0]] * len(rows)


def test_memory_is_that_of_the_key_the_place_and_the_length() -> None:
    near = 2**0.7  # calm if it was calm before, over the fair share otherwise
    steady = SteadyLevels()
    steady.levels("L1", [1.0, 2.0])
    assert steady.levels("L1", [near, near]) == [1, 3]
    assert steady.levels("L2", [near, near]) == [3, 3]
    steady.levels("L1", [1.0, 1.0])
    assert steady.levels("L1", [near]) == [3]


def test_a_key_is_forgotten_after_more_than_a_thousand_others() -> None:
    near, steady = 2**0.7, SteadyLevels()
    for key in range(5):
        steady.levels(key, [1.0])
    for other in range(1000, 1000 + MOST_KEYS - 5):
        steady.levels(other, [1.0])
    assert MOST_KEYS > 1000
    assert steady.levels(0, [near]) == [1]  # asked for again: among the last to go
    steady.levels("one more", [1.0])
    assert steady.levels(1, [near]) == [3]
    assert steady.levels(0, [near]) == [1]


@given(st.floats(0.02, 0.16), st.lists(st.floats(-2.9, 2.9), min_size=1, max_size=60), OCTAVES)
def test_known_noise_moves_no_cell(noise: float, deviations: list[float], octaves: float) -> None:
    """Up to three standard deviations, wherever the mean lies: also on an edge."""
    steady = SteadyLevels()
    first = steady.levels("L1", [2.0**octaves], noise=noise)
    hot = [octaves + noise * deviation > HOT_LEVEL / 4 for deviation in deviations]
    assume(first >= [HOT_LEVEL] or not any(hot))  # that is shown at once
    for deviation in deviations:
        load = 2.0 ** (octaves + noise * deviation)
        assert steady.levels("L1", [load], noise=noise) == first


def test_no_noise_however_large_hides_an_octave() -> None:
    steady = SteadyLevels()
    steady.levels("L1", [2.0], noise=9.0)
    assert steady.levels("L1", [4.0], noise=9.0) == [8]


@pytest.mark.parametrize("per_cell", [1, 2, 8])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_hot_expert_is_hot_at_once_whatever_was_shown_before(per_cell: int, noise: float) -> None:
    steady = SteadyLevels()
    steady.levels("L1", [1.4, 2.5], per_cell, noise)
    assert min(steady.levels("L1", [2.84, 2.84], per_cell, noise)) >= HOT_LEVEL


def test_levels_for_other_numbers_of_experts_a_cell_are_held_apart() -> None:
    steady = SteadyLevels()
    assert steady.levels("L1", [2.0], 4) == [0]
    assert steady.levels("L1", [2.0], 1) == [4]
    assert steady.levels("L1", [2.0], 4) == [0]
