"""The published algorithm for placements: DeepSeek's EPLB, slot by slot.

Experts get copies until the largest copy is small, then the copies are packed onto the ranks by
falling load. With groups and nodes, groups are packed onto nodes first, and the rest happens in
every node by itself.

Source: https://github.com/deepseek-ai/EPLB, ``eplb.py`` (MIT). It computes in single precision and
leaves the order of equal loads to torch; here they keep their order, in double precision.
"""

from collections.abc import Sequence
from heapq import heapify, heappop, heapreplace
from itertools import chain

from .cluster import Cluster


def published(loads: Sequence[float], cluster: Cluster) -> list[list[int]]:
    """The experts of every rank, by the policy that the cluster selects.

    Args:
        loads: one number per expert, in any unit.
    """
    groups, nodes = cluster.groups, cluster.nodes
    if groups % nodes:
        groups = nodes = 1  # the global policy
    size = cluster.experts // groups
    members = [range(start, start + size) for start in range(0, cluster.experts, size)]
    sums = [sum(map(loads.__getitem__, group)) for group in members]
    ranks: list[list[int]] = []
    for held in packed(sums, nodes):
        experts = list(chain.from_iterable(members[group] for group in held))
        own = [loads[expert] for expert in experts]
        copies = replicated(own, cluster.slots // nodes)
        placed = spread(own, copies, cluster.ranks // nodes)
        ranks += [[experts[item] for item in rank] for rank in placed]
    return ranks


def replicated(loads: Sequence[float], slots: int) -> list[int]:
    """The expert of every copy: each expert once, then again the one with the largest copy."""
    copies, counts = list(range(len(loads))), [1] * len(loads)
    heap = [(-load, item) for item, load in enumerate(loads)]
    heapify(heap)
    while len(copies) < slots:
        item = heap[0][1]
        copies.append(item)
        counts[item] += 1
        heapreplace(heap, (-loads[item] / counts[item], item))
    return copies


def spread(loads: Sequence[float], copies: Sequence[int], ranks: int) -> list[list[int]]:
    """The copies packed onto ranks; those of one expert share its load evenly."""
    counts = [0] * len(loads)
    for item in copies:
        counts[item] += 1
    placed = packed([loads[item] / counts[item] for item in copies], ranks)
    return [[copies[index] for index in rank] for rank in placed]


def packed(weights: Sequence[float], packs: int) -> list[list[int]]:
    """As many items into each pack: by falling weight into the lightest one that has room.

    The first pack and the first item win a tie. One item per pack: item i is in pack i.
    """
    each = len(weights) // packs
    if each == 1:
        return [[item] for item in range(packs)]
    held: list[list[int]] = [[] for _ in range(packs)]
    heap = [(0.0, pack) for pack in range(packs)]
    for item in sorted(range(len(weights)), key=weights.__getitem__, reverse=True):
        weight, pack = heap[0]
        held[pack].append(item)
        if len(held[pack]) < each:
            heapreplace(heap, (weight + weights[item], pack))
        else:
            heappop(heap)
    return held
