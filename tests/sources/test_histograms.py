"""Histograms are counts only by their edges: numpy makes them as W&B and TensorBoard do."""

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest

from microscope_tui.sources import NotChoices, choices

EXPERTS = (16, 64, 256)
every_size = pytest.mark.parametrize("experts", EXPERTS)


def ids(experts: int, lowest: int = 0, highest: int | None = None, seed: int = 0) -> np.ndarray:
    """A step's choices among the experts from ``lowest`` to ``highest``, both in use."""
    top = experts - 1 if highest is None else highest
    some = np.random.default_rng(seed).integers(lowest, top + 1, 40 * experts)
    return np.concatenate([some, [lowest, top]])


def read(chosen: np.ndarray, bins: int | np.ndarray) -> list[int]:
    counts, edges = np.histogram(chosen, bins)
    return choices(edges.tolist(), counts.tolist())


def refused(edges: Sequence[float], counts: Sequence[float], largest: float = math.inf) -> str:
    with pytest.raises(NotChoices) as found:
        choices(edges, counts, largest)
    return str(found.value)


@every_size
@pytest.mark.parametrize("dead", [0, 1, 3])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_given_edges_hold_every_expert_also_with_dead_ones_at_both_ends(
    experts: int, dead: int, offset: float
) -> None:
    chosen = ids(experts, dead, experts - 1 - dead)
    found = read(chosen, np.arange(experts + 1) - offset)
    assert found == np.bincount(chosen, minlength=experts).tolist()


@every_size
def test_bins_over_the_range_of_the_ids_are_counts_while_both_ends_are_in_use(experts: int) -> None:
    assert read(ids(experts), experts) == np.bincount(ids(experts)).tolist()


@pytest.mark.parametrize(("first", "last"), [(0, 15), (0, 13), (1, 13), (2, 14)])
def test_missing_lower_bins_are_experts_without_tokens(first: int, last: int) -> None:
    """TensorBoard cuts empty ends; the largest value shows that 14 is no edge of the values."""
    chosen = ids(16, first, last)
    expected = np.bincount(chosen).tolist()
    whole = [float(edge) for edge in range(first, last + 2)]
    assert choices(whole, expected[first:], float(last)) == expected
    assert choices([edge - 0.5 for edge in whole], expected[first:]) == expected
    assert "not one for each expert" in refused([1.0, 2.0, 3.0], [90, 90])
    assert "not one for each expert" in refused([1.0, 2.0, 3.0], [90, 90], 3.0)


def test_no_shifted_histogram_is_ever_counts() -> None:
    """Of 1,000 histograms over the range of the ids, those that are taken are the counts."""
    taken = 0
    generator = random.Random(7)
    for seed in range(1000):
        experts = generator.choice(EXPERTS)
        lowest = generator.choice([0, 1, 2, generator.randrange(experts // 2)])
        highest = experts - 1 - generator.choice([0, 1, 2, generator.randrange(experts // 2)])
        bins = generator.choice([experts, 64, 32, highest - lowest + 1, generator.randint(8, 300)])
        chosen = ids(experts, lowest, highest, seed)
        if (lowest, highest) == (0, bins):
            continue  # the edges of arange(bins + 1)
        try:
            found = read(chosen, bins)
        except NotChoices:
            continue
        assert found == np.bincount(chosen).tolist(), (experts, lowest, highest, bins)
        taken += 1
    assert taken > 20


def test_no_histogram_of_values_is_ever_counts() -> None:
    """``Histogram(counts)`` and arrays that W&B replaces, of loads, shares and biases."""
    draw = np.random.default_rng(3)
    for _ in range(1000):
        experts = int(draw.choice(EXPERTS))
        loads = draw.poisson(draw.uniform(0.5, 60), experts)
        for values in (loads, loads / max(1, loads.sum()), draw.normal(size=experts)):
            for bins in (32, 64, experts):
                counts, edges = np.histogram(values, bins)
                refused(edges.tolist(), counts.tolist())


def test_a_refusal_has_the_bins_and_what_to_log() -> None:
    edges = np.linspace(0.0, 0.3, 33).tolist()
    why = "histogram of 32 bins of values, not counts: log a list"
    assert refused(edges, [2] * 32) == why
    assert refused(list(range(17)), [1] * 16) == why.replace("32", "16")
    shifted = np.histogram(ids(64, 1, 62), 64)[1].tolist()
    why = "histogram of 64 bins from 1 to 62, not one for each expert: log a list"
    assert refused(shifted, [40] * 64) == why


@pytest.mark.parametrize(
    ("edges", "counts"),
    [
        ([], []),
        ([0.0, 1.0], [5, 5]),
        ([0.0, float("nan")], [50]),
        ([-1e308, 1e308], [50]),
        ([float("-inf"), float("inf")], [50]),
        ([0.0, 1.0, 2.0], [50, -1]),
        ([0.0, 1.0, 2.0], [50, 0.5]),
        ([0.0, 1.0, 2.0], [50, float("inf")]),
        ([0.0, 1.0, 2.0], [50, float("nan")]),
        ([-1.5, -0.5, 0.5], [50, 50]),
        ([2.0, 1.0, 0.0], [50, 50]),
        ([0.0] * 70_000, [1] * 69_999),
    ],
)
def test_what_is_no_histogram_of_experts_is_refused(
    edges: list[float], counts: list[float]
) -> None:
    assert refused(edges, counts).endswith("log a list")
