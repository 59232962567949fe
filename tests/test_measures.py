"""The formulas against someone else's: scipy-free closed forms and numpy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microscope_tui import measures

COUNTS = st.lists(st.integers(0, 10**6), min_size=2, max_size=64).filter(any)


@given(COUNTS)
def test_load_entropy_is_the_entropy_of_the_shares(counts: list[int]) -> None:
    shares = np.array(counts, dtype=np.float64) / sum(counts)
    positive = shares[shares > 0]
    expected = float(-(positive * np.log(positive)).sum())
    assert measures.load_entropy(counts) == pytest.approx(expected, abs=1e-9)


@given(COUNTS)
def test_effective_experts_lies_between_one_and_all(counts: list[int]) -> None:
    effective = measures.effective_experts(counts)
    assert effective is not None
    assert 1 - 1e-9 <= effective <= len(counts) + 1e-9


@given(COUNTS, st.integers(2, 50))
def test_scaling_all_counts_changes_nothing(counts: list[int], factor: int) -> None:
    scaled = [count * factor for count in counts]
    assert measures.effective_experts(scaled) == pytest.approx(measures.effective_experts(counts))
    assert measures.max_load(scaled) == pytest.approx(measures.max_load(counts))
    assert measures.dead_experts(scaled) == measures.dead_experts(counts)


@pytest.mark.parametrize(("experts", "top_k"), [(8, 1), (8, 2), (64, 8), (256, 8)])
def test_collapse_index_is_one_when_even_and_zero_on_k_experts(experts: int, top_k: int) -> None:
    even = measures.effective_experts([100] * experts)
    collapsed = measures.effective_experts([100] * top_k + [0] * (experts - top_k))
    assert measures.collapse_index(even, experts, top_k) == pytest.approx(1.0)
    assert measures.collapse_index(collapsed, experts, top_k) == pytest.approx(0.0, abs=1e-9)


def test_no_value_where_there_is_nothing_to_measure() -> None:
    assert measures.load([0, 0]) is None
    assert measures.effective_experts([0, 0]) is None
    assert measures.max_load([]) is None
    assert measures.collapse_index(2.0, 2, 2) is None
    assert measures.collapse_index(math.nan, 8, 2) is None
    assert measures.relative_mutual_information(1.0, math.nan) is None


def test_max_load_of_a_collapsed_router_is_experts_over_k() -> None:
    assert measures.max_load([50, 50, 0, 0, 0, 0, 0, 0]) == 4.0


def test_starved_counts_experts_below_a_tenth_of_the_mean_dead_ones_included() -> None:
    assert measures.starved_experts([0, 9, 10, 1000, 100]) == 3
    assert measures.dead_experts([0, 9, 10, 1000, 100]) == 1


@pytest.mark.parametrize(
    ("c", "information", "lift", "word"),
    [
        (0.1, 0.6, 3.0, "collapsed"),
        (0.1, None, None, "collapsed"),
        (0.9, 0.4, None, "specialised"),
        (0.9, 0.04, 6.0, "specialised"),  # sigmoid over 256 experts: the entropy says little
        (0.9, 0.01, 1.1, "uniform"),
        (0.9, 0.01, None, "uniform"),
        (0.9, 0.05, 1.5, "undecided"),
        (0.9, None, None, None),
        (None, 0.4, None, None),
    ],
)
def test_the_quadrant_asks_for_the_load_first_and_then_for_confidence(
    c: float | None, information: float | None, lift: float | None, word: str | None
) -> None:
    assert measures.quadrant(c, information, lift) == word
