"""The formulas against someone else's: scipy-free closed forms and numpy."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from benchmarks.real.arrays import collapse_index as brute_force
from microscope_tui import measures

COUNTS = st.lists(st.integers(0, 10**6), min_size=2, max_size=64).filter(any)


@given(COUNTS)
def test_effective_experts_are_exp_of_the_entropy_of_the_shares(counts: list[int]) -> None:
    shares = np.array(counts, dtype=np.float64) / sum(counts)
    positive = shares[shares > 0]
    expected = float(-(positive * np.log(positive)).sum())
    assert measures.load_entropy(counts) == pytest.approx(expected, abs=1e-9)
    assert measures.effective_experts(counts) == pytest.approx(np.exp(expected), rel=1e-9)


@given(COUNTS, st.integers(2, 50))
def test_scaling_all_counts_changes_nothing(counts: list[int], factor: int) -> None:
    scaled = [count * factor for count in counts]
    assert measures.effective_experts(scaled) == pytest.approx(measures.effective_experts(counts))
    assert measures.max_load(scaled) == pytest.approx(measures.max_load(counts))
    assert measures.dead_experts(scaled) == measures.dead_experts(counts)


@pytest.mark.parametrize(("experts", "top_k"), [(8, 1), (8, 2), (64, 8), (256, 8), (256, 16)])
def test_the_balance_is_one_when_even_zero_on_k_and_omits_none(experts: int, top_k: int) -> None:
    for chosen, index in ((experts, 1.0), (top_k, 0.0)):
        counts = [1000] * chosen + [0] * (experts - chosen)
        found = measures.balance(counts, top_k)
        assert (found.without, found.num_experts) == ((), experts)
        assert found.effective == pytest.approx(measures.effective_experts(counts))
        assert found.effective == pytest.approx(chosen)
        assert found.collapse_index == pytest.approx(index, abs=1e-9)
        assert measures.collapse_index(found.effective, experts, top_k) == found.collapse_index


def test_no_value_where_there_is_nothing_to_measure() -> None:
    assert measures.load([0, 0]) is None
    assert measures.effective_experts([0, 0]) is None
    assert measures.max_load([]) is None
    assert measures.collapse_index(2.0, 2, 2) is None
    assert measures.collapse_index(math.nan, 8, 2) is None
    assert measures.relative_mutual_information(1.0, math.nan) is None


def test_the_largest_load_and_experts_below_a_tenth_of_the_mean_and_of_nothing() -> None:
    counts = [0, 9, 10, 1000, 101]
    assert measures.max_load(counts) == 1000 / 224
    assert measures.starved_experts(counts) == 3
    assert measures.dead_experts(counts) == 1


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


@pytest.mark.parametrize(
    ("experts", "top_k"), [(8, 2), (32, 2), (64, 2), (128, 2), (256, 2), (64, 4), (64, 8)]
)
def test_an_expert_of_every_token_is_left_out_of_the_balance(experts: int, top_k: int) -> None:
    others = (top_k - 1) * 1000
    counts = [others] * experts
    counts[5] = 1000 * (experts - 1)  # all tokens; the other choices are exactly even
    found = measures.balance(counts, top_k)
    assert found.without == (5,)
    assert found.collapse_index == pytest.approx(1.0)
    assert found.num_experts == experts - 1
    plain = measures.collapse_index(measures.effective_experts(counts), experts, top_k)
    assert plain < 0.95


def test_c_of_others_that_are_even_does_not_fall_as_one_expert_gets_busier() -> None:
    tokens, experts = 100_000, 256  # of all experts c falls to 0.11
    for share in (0.3, 0.6, 0.9, 0.94, 0.96, 1.0):
        rest, more = divmod(round((2 - share) * tokens), experts - 1)
        counts = [round(share * tokens), *(rest + (e < more) for e in range(experts - 1))]
        assert (measures.balance(counts, 2).collapse_index or 0.0) > 0.45


@st.composite
def routed(draw: st.DrawFn, most_choices: int = 7) -> tuple[list[int], int]:
    """Counts that routing to k different experts can produce, with one expert near 95 %."""
    top_k = draw(st.integers(2, most_choices))
    experts = draw(st.integers(top_k + 2, 64))
    tokens = draw(st.integers(200, 10_000))
    counts = [draw(st.integers(round(0.9 * tokens), tokens))]
    left = top_k * tokens - counts[0]
    for others in range(experts - 1, 0, -1):
        least = max(0, left - (others - 1) * tokens)
        most = min(tokens, left)
        counts.append(draw(st.integers(least, most)) if others > 1 else left)
        left -= counts[-1]
    return counts, top_k


@given(routed())
def test_leaving_an_expert_out_never_looks_more_collapsed(case: tuple[list[int], int]) -> None:
    counts, top_k = case
    plain = measures.collapse_index(measures.effective_experts(counts), len(counts), top_k)
    index = measures.balance(counts, top_k).collapse_index
    assert index >= plain - 0.02


@given(routed())
def test_two_summaries_give_the_same_balance_as_the_counts(case: tuple[list[int], int]) -> None:
    counts, top_k = case
    found = measures.balance_of_summary(
        measures.effective_experts(counts), measures.max_load(counts), len(counts), top_k
    )
    assert found == pytest.approx(measures.balance(counts, top_k).collapse_index, abs=1e-6)


@given(routed(most_choices=16))
def test_the_balance_is_that_of_brute_force(case: tuple[list[int], int]) -> None:
    counts, top_k = case
    expected = float(np.clip(brute_force(np.array(counts), top_k), 0, 1))
    assert measures.balance(counts, top_k).collapse_index == pytest.approx(expected, abs=1e-9)


@given(st.floats(allow_nan=True), st.floats(allow_nan=True), st.integers(0, 9), st.integers(0, 9))
def test_summaries_from_a_stranger_give_a_share_or_nothing(
    effective: float, max_load: float, num_experts: int, top_k: int
) -> None:
    found = measures.balance_of_summary(effective, max_load, num_experts, top_k)
    assert found is None or 0 <= found <= 1
