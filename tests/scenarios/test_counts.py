"""Drawn counts: what a row of a synthetic run may look like."""

import random

from hypothesis import given, strategies as st

from microscope_tui.scenarios import draw_counts
from microscope_tui.scenarios.popularity import inclusion_shares

WEIGHTS = st.lists(st.floats(1e-6, 1e4) | st.just(0.0), min_size=2, max_size=64)


@given(WEIGHTS, st.integers(1, 500), st.data())
def test_a_row_sums_to_tokens_times_k_with_no_expert_above_tokens_and_shares_to_k(
    weights: list[float], tokens: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, len(weights)))
    counts = draw_counts(weights, tokens, top_k, random.Random(0))
    assert sum(counts) == tokens * top_k
    assert all(0 <= count <= tokens for count in counts)
    shares = inclusion_shares(weights, top_k)
    assert abs(sum(shares) - top_k) < 1e-6
    assert all(0 <= share <= 1 + 1e-9 for share in shares)


@given(st.integers(0, 1000), st.integers(1, 500))
def test_an_expert_of_weight_0_gets_nothing_while_there_are_others(seed: int, tokens: int) -> None:
    counts = draw_counts([1.0, 0.0, 0.1, 2.0, 0.0], tokens, 2, random.Random(seed))
    assert (counts[1], counts[4]) == (0, 0)
