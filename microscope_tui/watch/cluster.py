"""The ranks that share the experts of a layer, and what a placement is."""

from collections.abc import Sequence
from itertools import pairwise

import msgspec

Placement = Sequence[Sequence[int]]
"""The experts of every rank. An expert with several copies is listed once for each of them.

Slot ``s`` of the files of engines is the ``s``-th expert of all these lists, one after the other.
"""

MOST_SLOTS = 1 << 15
"""More take minutes a layer."""


class BadCluster(ValueError):
    """The numbers do not fit together; the message says which, and what would fit."""


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """The experts of one layer, and the ranks that hold them in as many slots each.

    ``BadCluster``: the slots cannot be shared evenly.
    """

    experts: int
    ranks: int
    nodes: int = 1
    groups: int = 1
    """Groups of neighbouring experts; each stays on one node if the nodes divide them."""
    replicas: int = 0
    """Copies beside the first one of every expert; the published num_replicas is ``slots``."""

    def __post_init__(self) -> None:
        experts, ranks, extra = self.experts, self.ranks, self.replicas
        most = experts * (ranks - 1)
        if extra > most:
            raise BadCluster(
                f"--replicas {extra:,}: at most {most:,} fit, a copy of each of {experts:,} "
                f"experts on each of {ranks:,} ranks"
            )
        if self.slots > MOST_SLOTS:
            raise BadCluster(f"{self.slots:,} slots in a layer: at most {MOST_SLOTS:,} are placed")
        if self.slots % ranks:
            fits = -(-self.slots // ranks) * ranks - experts
            raise BadCluster(
                f"{experts:,} experts and {extra:,} extra copies do not divide by {ranks:,} ranks; "
                f"--replicas {fits} would"
            )
        if ranks % self.nodes:
            raise BadCluster(f"--nodes {self.nodes}: {ranks:,} ranks do not divide by it")
        if experts % self.groups:
            raise BadCluster(f"--groups {self.groups}: {experts:,} experts do not divide by it")

    @property
    def slots(self) -> int:
        """Places for experts in the whole layer, copies included."""
        return self.experts + self.replicas


def contiguous(experts: int, ranks: int) -> list[list[int]]:
    """Neighbouring experts on one rank, as engines place them; the first ranks hold the rest."""
    each, rest = divmod(experts, ranks)
    starts = [rank * each + min(rank, rest) for rank in range(ranks + 1)]
    return [list(range(a, b)) for a, b in pairwise(starts)]


def copies_of(placement: Placement, experts: int) -> list[int]:
    """How often each expert is placed, over all ranks; 0 for one that is missing."""
    copies = [0] * experts
    for held in placement:
        for expert in held:
            copies[expert] += 1
    return copies


def double_copies(placement: Placement) -> int:
    """Slots that hold an expert which their rank has already: they balance nothing."""
    return sum(len(held) - len(set(held)) for held in placement)


def rank_loads(loads: Sequence[float], placement: Placement) -> list[float]:
    """The load of every rank if the copies of an expert share its load evenly."""
    copies = copies_of(placement, len(loads))
    return [sum(loads[expert] / copies[expert] for expert in held) for held in placement]
