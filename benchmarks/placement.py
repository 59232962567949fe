"""How good placements are.

    python -m benchmarks.placement exhaustive [--inputs 1000] [--seed 27]

``exhaustive``: how far the busiest rank of a placement is above the smallest possible one. Random
loads of 2 to 8 experts, 2 to 4 ranks, up to 12 slots: all numbers of copies, all ways to place
them. Ends with 1 if a target is missed.
"""

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from itertools import combinations

from benchmarks.machine import machine, options_of, say
from microscope_tui.placement import Cluster, published, rank_loads, refined


def main() -> int:
    options = options_of(__doc__, "command", inputs=1_000, seed=27)
    print(machine())
    return {"exhaustive": exhaustive}[str(options.command)](options)


def exhaustive(options: argparse.Namespace) -> int:
    cases = [(*case, optimum(*case)) for case in inputs(options.inputs, options.seed)]
    met = True
    for place, most in ((published, 4), (refined, 0.1)):
        above = [100 * (max(rank_loads(x, place(x, y))) / least - 1) for x, y, least in cases]
        exact = sum(value < 1e-9 for value in above) / len(above)
        met &= say(f"{place.__name__}, mean %", [sum(above) / len(above)], most)
        print(f"{'worst %':>34}: {max(above):8.4g}   the optimum in {exact:.1%} of {len(above):,}")
    return 0 if met else 1


def inputs(number: int, seed: int) -> Iterator[tuple[list[float], Cluster]]:
    """Loads of a layer: random, very uneven, or small whole numbers."""
    rng = random.Random(seed)
    kinds = (rng.random, lambda: rng.lognormvariate(0, 1.2), lambda: float(rng.randint(1, 20)))
    while number:
        experts, ranks = rng.randint(2, 8), rng.randint(2, 4)
        extra, draw = rng.randint(0, experts), rng.choice(kinds)
        if (experts + extra) % ranks == 0 and experts + extra <= 12:
            cluster = Cluster(experts=experts, ranks=ranks, replicas=extra)
            yield [draw() for _ in range(experts)], cluster
            number -= 1


def optimum(loads: Sequence[float], cluster: Cluster) -> float:
    """The smallest busiest rank over all numbers of copies and all ways to place them."""
    best, slots = sum(loads), cluster.slots
    for cuts in combinations(range(1, slots), len(loads) - 1):
        counts = [b - a for a, b in zip((0, *cuts), (*cuts, slots), strict=True)]
        sizes = [load / n for load, n in zip(loads, counts, strict=True) for _ in range(n)]
        best = _packed(sorted(sizes, reverse=True), cluster.per_rank, best)
    return best


def _packed(sizes: list[float], each: int, best: float) -> float:
    """The smallest busiest rank with these copies, or ``best``: the largest copy goes first."""
    if len(sizes) == each:
        return min(best, sum(sizes))
    others, total, tried = len(sizes) // each - 1, sum(sizes), set()
    for rest in combinations(range(1, len(sizes)), each - 1):
        held = (sizes[0], *(sizes[index] for index in rest))
        if held not in tried and sum(held) < best and total - sum(held) < best * others:
            tried.add(held)
            left = [size for index, size in enumerate(sizes) if index and index not in rest]
            best = min(best, max(sum(held), _packed(left, each, best)))
    return best


if __name__ == "__main__":
    sys.exit(main())
