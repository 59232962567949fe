"""Scores of placements: the gain's interval, and the copies that tokens are sent to."""

import numpy as np
import pytest

from microscope_tui.watch.cluster import Cluster
from microscope_tui.watch.score import even_shares, gain_of, nearest_shares


def test_the_interval_holds_the_mean_of_a_series_whose_neighbours_are_alike() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        noise, series = rng.normal(0, 1, 200), [0.0]
        for value in noise[1:]:
            series.append(0.8 * series[-1] + value)
        gain = gain_of([0.3 + value for value in series])
        assert gain.low is not None
        assert gain.high is not None
        held += gain.low <= 0.3 <= gain.high
    assert held >= 0.9 * 200  # of 95 %


def test_a_constant_gain_has_no_width_and_few_steps_have_no_interval() -> None:
    assert gain_of([0.2] * 100).low == pytest.approx(0.2)
    assert gain_of([0.2] * 15).low is None
    assert gain_of([]).mean == 0.0


def test_all_tokens_are_sent_whatever_the_dispatcher() -> None:
    cluster = Cluster(experts=6, ranks=4, nodes=2, replicas=6)
    placement = [[0, 0, 1], [0, 2, 3], [0, 4, 5], [1, 1, 2]]
    for shares in (even_shares(placement, 6), nearest_shares(placement, cluster)):
        sent = np.zeros(6)
        for held, parts in zip(placement, shares, strict=True):
            np.add.at(sent, held, parts)
        assert sent == pytest.approx(np.ones(6))


def test_the_nearest_copy_is_on_the_same_rank_then_on_the_same_node() -> None:
    cluster = Cluster(experts=2, ranks=4, nodes=2, replicas=2)
    shares = nearest_shares([[0], [1], [0], [0]], cluster)
    # Rank 0 serves itself and rank 1, ranks 2 and 3 themselves; expert 1 has one copy.
    assert [part for (part,) in shares] == pytest.approx([0.5, 1.0, 0.25, 0.25])
