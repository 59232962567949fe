"""The tables of a probe against plain loops, and against what was planted."""

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from microscope_tui.extensions.anatomy import tables
from microscope_tui.probe.held_out import SHUFFLES, held_out_slices, noise_level


@st.composite
def choices(draw: st.DrawFn) -> tuple[Any, Any, Any, int, int]:
    """Ids, token ids and slices of a few tokens; an id that is no expert is an empty slot."""
    experts, k, slices = draw(st.integers(2, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    count = draw(st.integers(1, 40))
    seed = draw(st.integers(0, 10_000))
    made = np.random.default_rng(seed)
    ids = made.integers(0, experts, (count, k)).astype(np.uint8)
    ids[made.random((count, k)) < 0.1] = 0xFF
    tokens = made.integers(0, 7, count) * 1000
    return ids, tokens, np.sort(made.integers(0, slices, count)), experts, slices


@settings(max_examples=100)
@given(choices())
def test_counts_equal_a_loop(drawn: Any) -> None:
    ids, _, slices, experts, num_slices = drawn
    expected = [[0] * experts for _ in range(num_slices)]
    for row, where in zip(ids.tolist(), slices.tolist(), strict=True):
        for one in row:
            if one < experts:
                expected[where][one] += 1
    assert tables.count_slices(ids, slices, num_slices, experts).tolist() == expected


def explained(ids: list[list[int]], tokens: list[int], experts: int) -> float | None:
    """Share of variance by definition: around the mean of each token, and around that of all."""
    within = whole = 0.0
    for expert in range(experts):
        chosen = [float(expert in row) for row in ids]
        mean = sum(chosen) / len(chosen)
        whole += sum((one - mean) ** 2 for one in chosen)
        for token in set(tokens):
            own = [one for one, at in zip(chosen, tokens, strict=True) if at == token]
            within += sum((one - sum(own) / len(own)) ** 2 for one in own)
    return None if whole < 1e-9 else 1 - within / whole


@settings(max_examples=100)
@given(choices(), st.sampled_from([5, 1 << 22]))
def test_identity_share_is_the_explained_variance(drawn: Any, cells: int) -> None:
    ids, tokens, _, experts, _ = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "MOST_CELLS", cells)  # in chunks of the vocabulary, and at once
        found = tables.identity_share(tables.Vocabulary(tokens), ids, experts)
    expected = explained(ids.tolist(), tokens.tolist(), experts)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found == pytest.approx(max(0.0, expected), abs=1e-9)


def lifts(ids: list[list[int]], tokens: list[int], expert: int) -> list[tuple[int, int, float]]:
    chose = [expert in row for row in ids]
    share = sum(chose) / len(ids)
    both = Counter(token for token, one in zip(tokens, chose, strict=True) if one)
    rows = [
        (token, count, count / tokens.count(token) / share)
        for token, count in both.items()
        if count >= tables.FEWEST_PAIRS
    ]
    rows = [row for row in rows if row[1] * len(ids) > tokens.count(row[0]) * sum(chose)]
    return sorted(rows, key=lambda row: (-round(row[2], 9), -row[1], row[0]))


@settings(max_examples=100)
@given(choices(), st.sampled_from([5, 1 << 22]))
def test_telling_tokens_equal_a_loop(drawn: Any, cells: int) -> None:
    ids, tokens, _, experts, _ = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "MOST_CELLS", cells)
        found = tables.telling_tokens(tables.Vocabulary(tokens), ids, experts)
    for expert, rows in enumerate(found):
        expected = lifts(ids.tolist(), tokens.tolist(), expert)
        assert [row[:2] for row in rows] == [row[:2] for row in expected]
        assert [row[2] for row in rows] == pytest.approx([row[2] for row in expected])


@settings(max_examples=50)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.integers(1, 7))
def test_a_piece_is_neighbours_of_one_slice(slices: list[int], size: int) -> None:
    pieces = tables.pieces_of(np.array(slices), size).tolist()
    expected, number, length = [0], 0, 1
    for before, now in pairwise(slices):
        if now != before or length == size:
            number, length = number + 1, 0
        expected.append(number)
        length += 1
    assert pieces == expected


def planted(q: float, tokens: int = 200_000, k: int = 1) -> tuple[Any, Any]:
    """With probability ``q`` token v chooses experts v % 8 …, else any k of the eight."""
    made = np.random.default_rng(1)
    ids = made.integers(0, 40, tokens)
    own = (ids[:, None] + np.arange(k)) % 8
    any_ = made.random((tokens, 8)).argsort(axis=1)[:, :k]
    return ids, np.where(made.random((tokens, 1)) < q, own, any_)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("q", [1.0, 0.7, 0.3, 0.0])
def test_a_planted_share_of_identity_is_recovered(q: float, k: int) -> None:
    """The token explains ``q²`` of the variance: its conditional means are ``q`` times as far from
    the mean of all as they are where it decides alone."""
    tokens, ids = planted(q, k=k)
    vocabulary = tables.Vocabulary(tokens)
    assert tables.identity_share(vocabulary, ids, 8) == pytest.approx(q * q, abs=0.01)
    chance = tables.identity_share(vocabulary, ids, 8, shuffled=True)
    assert chance == pytest.approx(39 / 199_999, rel=0.5)


def test_noise_is_that_of_slices_which_do_not_differ() -> None:
    """Tokens without neighbours alike: the ratio has the spread of a share of n tokens."""
    made = np.random.default_rng(0)
    ids, slices = made.integers(0, 8, (64_000, 1)), np.repeat([0, 1], 32_000)
    found = tables.shuffled_ratios(ids, slices, 2, 8)
    # Var of a share p of n tokens in half of 2n is p(1−p)/2n; 2.576 sigma are the 99 % point.
    expected = 2.576 * math.sqrt(7 / 8 * 8 / 64_000) / math.log(2)
    assert [noise_level(one) for one in found] == pytest.approx([expected] * 2, rel=0.25)


def test_neighbours_that_are_alike_make_more_noise() -> None:
    made = np.random.default_rng(0)
    runs = np.repeat(made.integers(0, 8, 1000), 64)[:, None]
    slices = np.repeat([0, 1], 32_000)
    alike = noise_level(tables.shuffled_ratios(runs, slices, 2, 8)[0])
    apart = noise_level(tables.shuffled_ratios(made.permutation(runs), slices, 2, 8)[0])
    assert alike > 5 * apart


def test_shuffling_is_the_same_every_time() -> None:
    _, ids = planted(0.5, 4000)
    slices = np.repeat([0, 1], 2000)
    first, again = (tables.shuffled_ratios(ids, slices, 2, 8) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_an_expert_without_enough_pairs_is_no_noise() -> None:
    ids = np.zeros((1000, 1), dtype=np.int64)
    ids[:3] = 1
    (found,) = tables.shuffled_ratios(ids, np.zeros(1000, dtype=np.int64), 1, 3)
    assert len(found) == SHUFFLES
    assert noise_level(found) == 0.0


def test_held_out_counts_are_sums_by_source_beside_what_shuffled_sequences_reach() -> None:
    made = np.random.default_rng(0)
    counts_NLE = made.poisson(20, (60, 2, 8))
    counts_NLE[20:, 1, 3] += 20
    found = held_out_slices(["a", "b"], [20, 40], counts_NLE)
    assert found["names"] == ["a", "b"]
    assert found["counts"] == [counts_NLE[:20].sum(0).tolist(), counts_NLE[20:].sum(0).tolist()]
    shares_NE = counts_NLE[:, 1] / counts_NLE[:, 1].sum(-1, keepdims=True)
    planted = abs(math.log2(shares_NE[:20, 3].mean() / shares_NE[:, 3].mean()))
    assert 0 < found["noise"][1] < found["noise"][0] < planted
