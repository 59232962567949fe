"""The refined placement: at most as busy as the published one, and near the optimum."""

import random
from itertools import product

import pytest
from hypothesis import example, given, settings

from benchmarks.placement import inputs, optimum
from microscope_tui.extensions.placement.published import published
from microscope_tui.extensions.placement.refine import refined
from microscope_tui.watch.cluster import (
    Cluster,
    Placement,
    contiguous,
    copies_of,
    double_copies,
    rank_loads,
)
from tests.extensions.placement.drawn import fits, groups_are_together, node_size

EVEN_NODES_ARE_WORSE = [3, 1, 0, 2, 3, 5, 2, 0, 3, 3, 3, 2]
DOUBLES_OF_LIGHT_NODES = list(map(int, "501531205123255120124433131"))
NODES_OF_ONE_RANK = Cluster(experts=8, ranks=2, nodes=2, groups=2, replicas=4)
ANOTHER_NODE_IS_BUSIER = [774, 657, 547, 621, 468, 321, 431, 266, 391, 475, 908, 835, 605, 260, 778]


@settings(max_examples=100)
@example((EVEN_NODES_ARE_WORSE, Cluster(experts=12, ranks=18, nodes=3, groups=12, replicas=6)))
@example((ANOTHER_NODE_IS_BUSIER, Cluster(experts=15, ranks=12, nodes=3, groups=3, replicas=9)))
@example((DOUBLES_OF_LIGHT_NODES, Cluster(experts=27, ranks=18, nodes=3, groups=9, replicas=45)))
@example((list(range(8)), NODES_OF_ONE_RANK))
@given(fits())
def test_no_rank_is_busier_than_the_busiest_published_one(fit: tuple[list[int], Cluster]) -> None:
    loads, cluster = fit
    placement, known = refined(loads, cluster), published(loads, cluster)
    assert [len(held) for held in placement] == [cluster.slots // cluster.ranks] * cluster.ranks
    assert min(copies_of(placement, cluster.experts)) >= 1
    assert groups_are_together(placement, cluster)
    busiest, most = max(rank_loads(loads, placement)), max(rank_loads(loads, known))
    assert busiest <= most * (1 + 1e-9)
    if busiest > most * (1 - 1e-9):
        assert double_copies(placement) <= double_copies(known)
    assert not a_swap_parts_doubles(loads, placement, cluster)
    assert refined(loads, cluster) == placement


def a_swap_parts_doubles(loads: list[int], placement: Placement, cluster: Cluster) -> bool:
    """Whether one within a node would, with no rank busier than the busiest."""
    sizes = [x / n for x, n in zip(loads, copies_of(placement, len(loads)), strict=True)]
    totals = rank_loads(loads, placement)
    node = node_size(cluster)
    return any(
        max(totals[p] - sizes[out] + sizes[back], totals[q] + sizes[out] - sizes[back])
        <= max(totals)
        for (p, own), (q, other) in product(enumerate(placement), repeat=2)
        for out, back in product(set(own) - set(other), set(other) - set(own))
        if own.count(out) > 1 and p // node == q // node
    )


def test_copies_share_evenly_and_a_second_one_on_a_rank_is_counted() -> None:
    placement = [[0, 0], [0, 1]]
    assert rank_loads([9, 1], placement) == [6, 4]
    assert double_copies(placement) == 1
    assert contiguous(5, 2) == [[0, 1, 2], [3, 4]]


def test_other_numbers_of_copies_beat_the_published_ones() -> None:
    loads, cluster = [600, 560, 120, 120, 20, 10, 10, 10], Cluster(experts=8, ranks=8, replicas=8)
    assert max(rank_loads(loads, published(loads, cluster))) == 232
    assert max(rank_loads(loads, refined(loads, cluster))) <= 197


@pytest.mark.parametrize("replicas", [0, 32])
def test_many_experts_are_within_the_bound_or_as_good_as_it_can_be(replicas: int) -> None:
    rng = random.Random(3)
    loads = [rng.lognormvariate(0, 1) for _ in range(256)]
    placement = refined(loads, Cluster(experts=256, ranks=32, replicas=replicas))
    least = sum(loads) / 32
    if not replicas:  # the largest expert and the seven lightest ones
        least = max(loads) + sum(sorted(loads)[:7])
    assert max(rank_loads(loads, placement)) <= 1.0002 * least


def test_groups_change_places_where_nodes_are_uneven() -> None:
    loads = [4, 4, 3.5, 3.5, 3, 3, 2.5, 2.5, 2, 2, 0, 0]  # published: 17 and 13 on the nodes
    placement = refined(loads, Cluster(experts=12, ranks=4, nodes=2, groups=6))
    assert rank_loads(loads, placement) == [7.5] * 4


def test_a_double_copy_stays_where_the_busiest_rank_needs_it() -> None:
    loads, cluster = [1, 0.3, 0.7], Cluster(experts=3, ranks=2, replicas=1)
    assert sorted(map(sorted, refined(loads, cluster))) == [[0, 0], [1, 2]]
    assert optimum(loads, cluster) == max(rank_loads(loads, [[0, 0], [1, 2]]))


def test_of_equally_busy_placements_the_one_with_fewer_double_copies_wins() -> None:
    placement = refined([3, 3, 0], Cluster(experts=3, ranks=2, replicas=1))
    assert (max(rank_loads([3, 3, 0], placement)), double_copies(placement)) == (3, 0)


def test_no_round_is_spent_on_taking_a_copy_that_leaves_the_others_too_large() -> None:
    loads = [14, 3, 30, 77, 33, 11, 24]
    placement = refined(loads, Cluster(experts=7, ranks=3, replicas=5))
    assert max(rank_loads(loads, placement)) == pytest.approx(sum(loads) / 3)


@pytest.mark.parametrize(
    "loads", [[0] * 64, [1] * 64, [0.1] * 64, [1, *[0] * 63]], ids=["none", "even", "tenths", "one"]
)
def test_double_copies_go_where_they_help_nobody(loads: list[float]) -> None:
    placement = refined(loads, Cluster(experts=64, ranks=16, replicas=16))
    assert double_copies(placement) == 0
    assert max(rank_loads(loads, placement)) == pytest.approx(sum(loads) / 16)


def test_small_clusters_are_near_the_optimum() -> None:
    above = [
        max(rank_loads(loads, refined(loads, cluster))) / optimum(loads, cluster) - 1
        for loads, cluster in inputs(60, seed=1)
    ]
    assert min(above) > -1e-9
    assert sum(above) / len(above) < 0.001
    assert max(above) < 0.02
