"""A placement whose busiest rank is at most as loaded as that of the published algorithm.

The published algorithm makes the largest *copy* small; what one waits for is the busiest *rank*.
Here one copy goes to another expert, everything is packed again, and copies are swapped between
ranks until that helps no more; then again, from the best placement so far. Of all swaps between the
busiest rank and another one, the best moves half of what they differ by.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import chain, combinations, product

from microscope_tui.extensions.placement.published import (
    groups_of,
    packed,
    published,
    replicated,
    spread,
)
from microscope_tui.watch.cluster import Cluster, copies_of, double_copies, rank_loads

_ROUNDS = 600
"""Packings and swaps for one layer, about 20 ms. Never timed: the result stays the same."""
_CLOSE = 1 + 1e-4
"""A busiest rank within 0.01 % of the lower bound is as good as the bound."""
_Counts = tuple[int, ...]
ROUNDING = 1e-12
_PAIRED = 12
"""Copies of a rank that are swapped in pairs."""
_Items = tuple[int, ...]


class Packing:
    """Copies of items on ranks, evened by swaps.

    Items are experts or groups of them; each copy has an even part of the load of its item.
    """

    def __init__(self, loads: Sequence[float], counts: Sequence[int], ranks: int) -> None:
        self.loads, self.counts = loads, counts
        self.sizes = [load / number for load, number in zip(loads, counts, strict=True)]
        copies = [item for item, number in enumerate(counts) for _ in range(number)]
        self.held = spread(loads, copies, ranks)
        self.totals = rank_loads(loads, self.held)

    @property
    def busiest(self) -> float:
        """Load of the rank with the most, in the unit of ``loads``."""
        return max(self.totals)

    def even(self, enough: float, rounds: Iterable[int]) -> None:
        """Swap until the busiest rank has ``enough``, no swap helps, or no round is left."""
        for _ in rounds:
            if self.busiest <= enough or not self._lighten():
                break

    def _lighten(self) -> bool:
        """One copy for one of another rank, else two for two."""
        busiest = self.busiest
        p = self.totals.index(busiest)
        light_first = sorted(range(len(self.totals)), key=self.totals.__getitem__)
        for width, q in product((1, 2), light_first):
            busier, out, back = self._evenest(p, q, width)
            if busier < busiest * (1 - ROUNDING):
                self._swap(p, q, out, back)
                return True
        return False

    def _evenest(self, p: int, q: int, width: int) -> tuple[float, _Items, _Items]:
        """The busier of two ranks after the swap that evens them most, and what each gives."""
        sides = []
        for mine, theirs in ((self.held[p], self.held[q]), (self.held[q], self.held[p])):
            free = [item for item in mine if item not in theirs]
            groups = combinations(free if width == 1 else free[:_PAIRED], width)
            sides.append(sorted((sum(map(self.sizes.__getitem__, g)), g) for g in groups))
        half = (self.totals[p] - self.totals[q]) / 2
        best: tuple[float, _Items, _Items] = (self.totals[p], (), ())
        for give, out in sides[0]:
            at = bisect_left(sides[1], (give - half,))
            for take, back in sides[1][max(0, at - 1) : at + 1]:
                best = min(best, (self.totals[p] - half + abs(give - take - half), out, back))
        return best

    def _swap(self, p: int, q: int, out: _Items, back: _Items) -> None:
        for rank, gone, new in ((p, out, back), (q, back, out)):
            for item in gone:
                self.held[rank].remove(item)
            self.held[rank] += new
            self.totals[rank] = sum(map(self.sizes.__getitem__, self.held[rank]))

    def part(self, most: float) -> None:
        """Swap second copies off their rank while no rank gets above ``most`` and the busiest."""
        most = max(self.busiest, most) * (1 + ROUNDING)
        while any([self._parted(p, most) for p in range(len(self.held))]):
            pass

    def _parted(self, p: int, most: float) -> bool:
        own = self.held[p]
        doubled = sorted(item for item in set(own) if own.count(item) > 1)
        for item, (q, other) in product(doubled, enumerate(self.held)):
            for back in other if item not in other else ():
                less = self.sizes[item] - self.sizes[back]
                if back not in own and max(self.totals[p] - less, self.totals[q] + less) <= most:
                    self._swap(p, q, (item,), (back,))
                    return True
        return False


_Place = tuple[tuple[float, int], int, Packing, Iterator[_Counts]]
"""Busiest rank in parts of what is enough, and double copies; a number; what is a move away."""


def refined(loads: Sequence[float], cluster: Cluster) -> list[list[int]]:
    """The experts of every rank, such that the busiest has about the least load.

    The busiest rank is, up to rounding, never above that of ``published``. Of placements with
    the same busiest rank, or within 0.01 % of the lower bound, the one with the fewest double
    copies. Where the cluster is hierarchical, a group stays on one node.

    Args:
        loads: One number per expert, in any unit.
        cluster: The ranks, and copies to place.
    """
    groups = groups_of(cluster)
    sums = [sum(map(loads.__getitem__, group)) for group in groups]
    nodes = cluster.nodes if len(groups) > 1 else 1
    even = Packing(sums, [1] * len(groups), nodes)
    even.even(0, range(_ROUNDS))
    known = max(rank_loads(loads, published(loads, cluster)))
    ways = [packed(sums, nodes), even.held][:nodes]  # one node holds all groups in any way
    homes = ([list(chain(*map(groups.__getitem__, held))) for held in way] for way in ways)
    return min(_on_nodes(loads, cluster, one, known) for one in homes)[1]


def _on_nodes(
    loads: Sequence[float], cluster: Cluster, homes: list[list[int]], known: float
) -> tuple[tuple[float, int], list[list[int]]]:
    """The experts of every rank, if ``homes`` are those of every node, and before them the cost."""
    ranks, slots = cluster.ranks // len(homes), cluster.slots // len(homes)
    own = [[loads[expert] for expert in home] for home in homes]
    bound = max(map(sum, own)) / ranks
    most = max(bound * (1 + ROUNDING), min(bound * _CLOSE, known))
    rounds = iter(range(_ROUNDS))
    packings = {}
    for node in sorted(range(len(homes)), key=lambda node: -sum(own[node])):
        packings[node] = _search(own[node], slots, ranks, most, rounds)
        most = max(most, packings[node].busiest)
    placement = []
    for node, home in enumerate(homes):
        packings[node].part(most)  # of all nodes
        placement += [[home[item] for item in held] for held in packings[node].held]
    return (round(most / (known or 1), 12), double_copies(placement)), placement


def _search(
    loads: Sequence[float], slots: int, ranks: int, enough: float, rounds: Iterator[int]
) -> Packing:
    """The best packing of one node: from the published copies, and from one a rank at most."""
    queue: list[_Place] = []
    known: set[_Counts] = set()

    def pack(counts: _Counts) -> _Place:
        packing = Packing(loads, counts, ranks)
        packing.even(enough, rounds)
        packing.part(enough)
        known.add(counts)
        cost = max(round(packing.busiest / (enough or 1), 12), 1), double_copies(packing.held)
        heappush(queue, place := (cost, len(known), packing, _neighbours(packing, cost[0] == 1)))
        return place

    fair = max(ranks, -(-slots // len(loads)))  # a copy a rank, or as many as fill the slots
    copies = [copies_of([replicated(loads, slots, most)], len(loads)) for most in (slots, fair)]
    best = min(map(pack, dict.fromkeys(map(tuple, copies))))
    for _ in rounds:
        if not queue or best[0] <= (1, 0):
            break
        place = heappop(queue)
        moved = next((counts for counts in place[3] if counts not in known), None)
        if moved is not None:
            heappush(queue, place)
            best = min(best, pack(moved))
    return best[2]


def _neighbours(packing: Packing, even: bool) -> Iterator[_Counts]:
    """Copies of every expert, one moved to another.

    First to those of the busiest rank, the largest first; if it is ``even``, to those with fewest.
    It comes from one whose other copies stay within the busiest rank, first where they stay small.
    """
    counts, sizes, most = packing.counts, packing.sizes, packing.busiest
    busy = packing.held[packing.totals.index(most)]
    grown = {i: packing.loads[i] / (n - 1) for i, n in enumerate(counts) if n > 1}
    give = sorted((i for i in grown if grown[i] <= most), key=grown.__getitem__)
    take = sorted(range(len(counts)), key=lambda i: (i not in busy, -sizes[i]))
    if even:
        take.sort(key=counts.__getitem__)
    for more, less in product(take, give):
        yield tuple(n + (i == more) - (i == less) for i, n in enumerate(counts))
