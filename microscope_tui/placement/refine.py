"""A placement whose busiest rank is at most as loaded as that of the published algorithm.

The published algorithm makes the largest *copy* small; what one waits for is the busiest *rank*.
Here copies are swapped between ranks until that helps no more. Then one copy goes to another
expert and everything is packed again, starting from the best placement so far.
"""

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from itertools import chain, combinations, takewhile

from .cluster import Cluster, copies_of, double_copies, rank_loads
from .published import groups_of, packed, published, replicated, spread

_WORK = 170_000
"""Pairs compared for one layer: at most about 20 ms. Never timed: the result stays the same."""
_CLOSE, _ROUNDING = 1 + 1e-4, 1e-12
"""A busiest rank within 0.01 % of the lower bound is as good as the bound."""
_STARTS, _COPIES, _LIGHTEST = 8, 24, 8
"""Starts of a search; copies of a rank that are compared, half in pairs; ranks tried with pairs."""
_Items = tuple[int, ...]


class _Packing:
    """The copies on the ranks of one node, and the swaps that improve them."""

    def __init__(self, loads: Sequence[float], copies: Sequence[int], ranks: int, work: int):
        self.held, self.work = spread(loads, copies, ranks), work - 8 * len(copies) - 150
        self.copies, self.totals = copies_of(self.held, len(loads)), rank_loads(loads, self.held)
        self._sizes = [load / n for load, n in zip(loads, self.copies, strict=True)]

    def improve(self, enough: float) -> None:
        """Swap until the busiest rank has ``enough`` or no swap helps; then part second copies."""
        while self.work > 0 and max(self.totals) > enough and self._lighten():
            pass
        self.part(enough)

    def _swap(self, p: int, q: int, out: Sequence[int], back: Sequence[int]) -> None:
        for rank, gone, new in ((p, out, back), (q, back, out)):
            for item in gone:
                self.held[rank].remove(item)
            self.held[rank] += new
            self.totals[rank] = sum(map(self._sizes.__getitem__, self.held[rank]))

    def _lighten(self) -> bool:
        """Make the busiest rank lighter: one copy for one of another rank, else two for two."""
        if len(self.held[0]) < 3:
            return False  # packing by falling load is the optimum of one or two slots
        busiest = max(self.totals)
        p = self.totals.index(busiest)
        light_first = sorted(range(len(self.totals)), key=self.totals.__getitem__)
        for width in (1, 2):
            best, least = None, busiest * (1 - _ROUNDING)
            for q in light_first[: _LIGHTEST if width == 2 else None]:
                half = (busiest - self.totals[q]) / 2
                if busiest - half >= least:
                    break
                off, out, back = self._evenest(p, q, width, half)
                if busiest - half + off < least:
                    best, least = (q, out, back), busiest - half + off
                    if off < 0.9 * half:
                        break
            if best:
                self._swap(p, *best)
                return True
        return False

    def _evenest(self, p: int, q: int, width: int, half: float) -> tuple[float, _Items, _Items]:
        """How far from ``half`` rank p gets lighter at best, what it gives and what it takes."""
        sides = []
        for mine, theirs in ((self.held[p], self.held[q]), (self.held[q], self.held[p])):
            free = [item for item in mine if item not in theirs][: _COPIES // width]
            groups = combinations(free, width)
            sides.append([(sum(map(self._sizes.__getitem__, group)), group) for group in groups])
        self.work -= len(sides[0]) * len(sides[1]) + 20
        pairs = [(abs(x - y - half), out, back) for x, out in sides[0] for y, back in sides[1]]
        return min(pairs, default=(half, (), ()))

    def part(self, most: float) -> None:
        """Swap second copies off their rank while no rank gets above ``most`` and the busiest."""
        most = max(*self.totals, most) * (1 + _ROUNDING)
        parted = True
        while parted:
            doubles = (own for own in enumerate(self.held) if len(set(own[1])) < len(own[1]))
            items = ((p, item) for p, own in doubles for item in sorted(set(own)))
            parted = any([self._parted(p, item, most) for p, item in items])

    def _parted(self, p: int, item: int, most: float) -> bool:
        own, size = self.held[p], self._sizes[item]
        if own.count(item) > 1:
            self.work -= len(own) * len(self.held) // 2
            room = most - self.totals[p] + size
            for q, other in enumerate(self.held):
                least = self.totals[q] + size - most
                for back in other if item not in other else ():
                    if least <= self._sizes[back] <= room and back not in own:
                        self._swap(p, q, (item,), (back,))
                        return True
        return False


_Found = tuple[float, int, int, _Packing]
"""The busiest rank in parts of what is enough, at least 1; double copies; a number; the packing."""


def _search(
    loads: Sequence[float], slots: int, ranks: int, enough: float, work: int
) -> tuple[_Packing, int]:
    """The best placement of the experts of one node that the work suffices for; the work left."""
    queue: list[_Found] = []
    seen: set[_Items] = set()

    def pack(copies: Sequence[int]) -> _Found:
        nonlocal work
        packing = _Packing(loads, copies, ranks, work)
        seen.add(tuple(packing.copies))
        packing.improve(enough)
        work = packing.work  # it only falls
        busiest = max(round(max(packing.totals) / (enough or 1), 12), 1)
        heappush(queue, found := (busiest, double_copies(packing.held), -work, packing))
        return found

    copies, experts = replicated(loads, slots), len(loads)
    light_first = sorted(range(experts), key=loads.__getitem__)
    # Fewer of the published copies while that helps; light experts fill slots beside heavy ones
    extra = ((slots - experts) * part // _STARTS for part in range(_STARTS, -1, -1))
    for kept in dict.fromkeys(experts + n for n in extra):
        fill = [light_first[i % experts] for i in range(slots - kept)]
        if pack(copies[:kept] + fill) is not queue[0] or queue[0][:2] <= (1, 0):
            break
    best = queue[0]
    while queue and work > 0 and best[:2] > (1, 0):
        place = heappop(queue)
        neighbours = _neighbours(loads, place[3], best[0] * enough)
        for counts in takewhile(lambda _: work > 0, neighbours):
            if counts not in seen:
                found = pack([i for i, n in enumerate(counts) for _ in range(n)])
                if found[:2] < best[:2]:
                    best = found
                    heappush(queue, place)
                    break
    return best[3], work


def _neighbours(loads: Sequence[float], packing: _Packing, most: float) -> Iterator[_Items]:
    """Copies of every expert, one moved to another: first of the busiest rank, the largest first.

    It comes from one whose other copies stay within ``most``, first where they stay small.
    """
    copies = packing.copies
    busy = packing.held[packing.totals.index(max(packing.totals))]
    grown = {i: loads[i] / (n - 1) for i, n in enumerate(copies) if n > 1}
    give = sorted((i for i in grown if grown[i] <= most), key=grown.__getitem__)
    take = sorted(range(len(loads)), key=lambda i: (i not in busy, -loads[i] / copies[i]))
    for more, less in ((more, less) for more in take for less in give if more != less):
        counts = copies.copy()
        counts[more] += 1
        counts[less] -= 1
        yield tuple(counts)


def refined(loads: Sequence[float], cluster: Cluster) -> list[list[int]]:
    """The experts of every rank.

    The busiest rank is, up to rounding, never above that of ``published``. Of placements with the
    same busiest rank, or within 0.01 % of the lower bound, the one with the fewest double copies.
    Where the cluster is hierarchical, a group stays on one node.

    Args:
        loads: one number per expert, in any unit.
    """
    if cluster.per_rank == cluster.experts and not cluster.hierarchical:
        return [list(range(cluster.experts)) for _ in range(cluster.ranks)]
    groups = groups_of(cluster)
    sums = [sum(map(loads.__getitem__, group)) for group in groups]
    nodes = cluster.nodes if len(groups) > 1 else 1
    even = _Packing(sums, range(len(groups)), nodes, _WORK)
    even.improve(sum(sums) / nodes)
    known, found = max(rank_loads(loads, published(loads, cluster))), []
    for homes in (even.held, packed(sums, nodes))[:nodes]:
        experts = [list(chain.from_iterable(groups[group] for group in home)) for home in homes]
        found.append(_on_nodes(loads, cluster, experts, known))
        if found[0][0] < 1:
            break
    return min(found)[2]


def _on_nodes(
    loads: Sequence[float], cluster: Cluster, homes: list[list[int]], known: float
) -> tuple[float, int, list[list[int]]]:
    """The busiest rank in parts of the known one, double copies, and the experts of every rank."""
    nodes, work = len(homes), 0
    slots, ranks = cluster.slots // nodes, cluster.ranks // nodes
    own = [[loads[expert] for expert in home] for home in homes]
    most = max(map(sum, own)) / ranks
    if not cluster.replicas:  # an expert has at best the lightest ones beside it
        most = max(most, *(max(node) + sum(sorted(node)[: slots // ranks - 1]) for node in own))
    most = max(most * (1 + _ROUNDING), min(most * _CLOSE, known))
    packings: dict[int, _Packing] = {}
    for node in sorted(range(nodes), key=lambda node: sum(own[node])):
        # what is left over is for the nodes with more load
        packings[node], work = _search(own[node], slots, ranks, most, work + _WORK // nodes)
        most = max(*packings[node].totals, most)
    placement = []
    for node, home in enumerate(homes):
        packing = packings[node]
        packing.part(most)
        if doubles := double_copies(packing.held):  # the busiest rank may be on another node
            other, work = _search(own[node], slots, ranks, most, work)
            if max(other.totals) <= most and double_copies(other.held) < doubles:
                packing = other
        placement += [[home[item] for item in held] for held in packing.held]
    return round(most / (known or 1), 12), double_copies(placement), placement
