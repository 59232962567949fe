"""The copies on the ranks of one node, and swaps between two ranks that even them out.

Of all swaps between the busiest rank and another one, the best moves half of what they differ by.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import combinations, product

from microscope_tui.extensions.placement.published import spread
from microscope_tui.watch.cluster import rank_loads

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
