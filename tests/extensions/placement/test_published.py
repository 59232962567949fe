"""The published algorithm: its own example slot by slot, and what holds for every fit.

Source: the README of https://github.com/deepseek-ai/EPLB; the slots of the global policy are what
its ``eplb.py`` returns for the same loads.
"""

from itertools import chain

import pytest
from hypothesis import given, settings

from microscope_tui.extensions.placement.published import published
from microscope_tui.watch.cluster import Cluster, copies_of, rank_loads
from tests.extensions.placement.drawn import fits, groups_are_together

ROWS = (
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
)
HIERARCHICAL = (
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
)
GLOBAL = (
    [10, 6, 10, 7, 0, 2, 11, 4, 5, 9, 5, 4, 8, 3, 1, 1],
    [1, 10, 2, 4, 5, 11, 5, 0, 6, 7, 6, 3, 8, 8, 9, 7],
)


@pytest.mark.parametrize(
    ("nodes", "groups", "slots", "balancedness"),
    [(2, 4, HIERARCHICAL, (0.8277, 0.8050)), (1, 1, GLOBAL, (0.9323, 0.8401))],
)
def test_its_own_example_slot_by_slot(
    nodes: int, groups: int, slots: tuple[list[int], ...], balancedness: tuple[float, ...]
) -> None:
    cluster = Cluster(experts=12, ranks=8, nodes=nodes, groups=groups, replicas=4)
    for loads, row, balance in zip(ROWS, slots, balancedness, strict=True):
        placement = published(loads, cluster)
        assert list(chain.from_iterable(placement)) == row
        ranks = rank_loads(loads, placement)
        assert sum(ranks) / len(ranks) / max(ranks) == pytest.approx(balance, abs=5e-5)


def test_groups_that_nodes_do_not_divide_are_ignored() -> None:
    loads, numbers = ROWS[0], {"experts": 12, "ranks": 8, "replicas": 4}
    plain = published(loads, Cluster(**numbers))
    assert published(loads, Cluster(**numbers, nodes=2, groups=3)) == plain


def test_a_group_per_node_and_a_slot_per_rank_keep_the_order_of_experts() -> None:
    cluster = Cluster(experts=4, ranks=4, nodes=2, groups=2)
    assert published([1, 2, 3, 4], cluster) == [[0], [1], [2], [3]]


@settings(max_examples=300)
@given(fits())
def test_every_expert_is_placed_and_every_rank_is_full(fit: tuple[list[int], Cluster]) -> None:
    loads, cluster = fit
    placement = published(loads, cluster)
    assert [len(held) for held in placement] == [cluster.slots // cluster.ranks] * cluster.ranks
    assert min(copies_of(placement, cluster.experts)) >= 1
    assert sum(rank_loads(loads, placement)) == pytest.approx(sum(loads))
    # a power of two scales doubles without rounding
    assert published([load * 0.125 for load in loads], cluster) == placement
    assert groups_are_together(placement, cluster)
