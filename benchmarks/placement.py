"""``python -m benchmarks.placement exhaustive``: placements against all the possible ones.

2 to 8 experts, 2 to 4 ranks, at most 12 slots. Ends with 1 if a target is missed.
"""

import random
import sys
from collections.abc import Iterator, Sequence
from itertools import combinations

from benchmarks.machine import machine, options_of, say
from microscope_tui.extensions.placement.published import published
from microscope_tui.extensions.placement.refine import refined
from microscope_tui.watch.cluster import Cluster, rank_loads


def exhaustive(number: int, seed: int) -> int:
    cases, met = [(*case, optimum(*case)) for case in inputs(number, seed)], True
    for place, most in ((published, 4), (refined, 0.1)):
        above = [100 * (max(rank_loads(x, place(x, y))) / least - 1) for x, y, least in cases]
        met &= say(f"{place.__name__}, mean %", [sum(above) / number], most)
        print(f"{'worst %':>34}: {max(above):8.4g}   optimal: {sum(x < 1e-9 for x in above):,}")
    return not met


def inputs(number: int, seed: int) -> Iterator[tuple[list[float], Cluster]]:
    """Loads of a layer: random, very uneven, or small whole numbers."""
    rng = random.Random(seed)
    kinds = (rng.random, lambda: rng.lognormvariate(0, 1.2), lambda: rng.randint(1, 20))
    while number:
        experts, ranks = rng.randint(2, 8), rng.randint(2, 4)
        extra, draw = rng.randint(0, experts), rng.choice(kinds)
        if (experts + extra) % ranks == 0 and experts + extra <= 12:
            loads, number = [draw() for _ in range(experts)], number - 1
            yield loads, Cluster(experts=experts, ranks=ranks, replicas=extra)


def optimum(loads: Sequence[float], cluster: Cluster) -> float:
    """The smallest busiest rank over all numbers of copies and all ways to place them."""
    best = sum(loads)
    for cuts in combinations(range(1, cluster.slots), len(loads) - 1):
        spans = zip(loads, (0, *cuts), (*cuts, cluster.slots), strict=True)
        sizes = [load / (b - a) for load, a, b in spans for _ in range(b - a)]
        best = _packed(sorted(sizes, reverse=True), cluster.slots // cluster.ranks, best)
    return best


def _packed(sizes: list[float], each: int, best: float) -> float:
    if len(sizes) == each:  # falling sizes: the next rank gets the first, the largest copy
        return min(best, sum(sizes))
    for rest in combinations(range(1, len(sizes)), each - 1):
        held = sizes[0] + sum(sizes[index] for index in rest)
        if held < best and sum(sizes) - held < best * (len(sizes) // each - 1):
            left = [size for index, size in enumerate(sizes) if index and index not in rest]
            best = min(best, max(held, _packed(left, each, best)))
    return best


if __name__ == "__main__":
    options = options_of(__doc__ or "", "command", inputs=1_000, seed=27)
    print(machine())
    sys.exit({"exhaustive": exhaustive}[options.command.name](options.inputs, options.seed))
