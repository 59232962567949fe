"""The published algorithm for placements: DeepSeek's EPLB, slot by slot.

Groups are packed onto nodes; on every node the largest copy is divided until the slots are full,
and the copies are packed onto ranks. Source: https://github.com/deepseek-ai/EPLB, ``eplb.py``,
which leaves the order of equal loads to torch, in single precision; here the first one goes first.
"""

from collections.abc import Sequence
from heapq import heapify, heappop, heapreplace
from itertools import chain

from microscope_tui.watch.cluster import Cluster, copies_of


def published(loads: Sequence[float], cluster: Cluster) -> list[list[int]]:
    """The experts of every rank, by the policy that the cluster selects.

    ``loads`` has one number per expert, in any unit.
    """
    groups = groups_of(cluster)
    sums = [sum(map(loads.__getitem__, group)) for group in groups]
    nodes = packed(sums, cluster.nodes if len(groups) > 1 else 1)
    ranks: list[list[int]] = []
    for held in nodes:
        experts = list(chain.from_iterable(groups[group] for group in held))
        own = [loads[expert] for expert in experts]
        copies = replicated(own, cluster.slots // len(nodes))
        placed = spread(own, copies, cluster.ranks // len(nodes))
        ranks += [[experts[item] for item in rank] for rank in placed]
    return ranks


def groups_of(cluster: Cluster) -> list[range]:
    """The experts of every group; all are one group where the nodes do not divide the groups."""
    size = cluster.experts
    if cluster.groups % cluster.nodes == 0:
        size //= cluster.groups
    return [range(start, start + size) for start in range(0, cluster.experts, size)]


def replicated(loads: Sequence[float], slots: int, most: int = 0) -> list[int]:
    """Each expert once, then again the one with the largest copy.

    No expert has more than ``most`` copies; by default, as published, it may have all.
    """
    copies, counts = list(range(len(loads))), [1] * len(loads)
    heap = [(-load, item) for item, load in enumerate(loads)]
    heapify(heap)
    while len(copies) < slots:
        item = heap[0][1]
        copies.append(item)
        counts[item] += 1
        if counts[item] == most:
            heappop(heap)
        else:
            heapreplace(heap, (-loads[item] / counts[item], item))
    return copies


def spread(loads: Sequence[float], copies: Sequence[int], ranks: int) -> list[list[int]]:
    """The copies packed onto ranks; those of one expert share its load evenly."""
    counts = copies_of([copies], len(loads))
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
