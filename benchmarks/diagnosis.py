"""The scoreboard of the diagnosis: synthetic runs with known truth, judged through the real path.

    python -m benchmarks.diagnosis [--seeds 0:20] [--jobs 2] [--quick] [--results FILE.jsonl]
    python -m benchmarks.diagnosis --scenarios slow-collapse,shock --shapes 8/2,64/8
    python -m benchmarks.diagnosis --one slow-collapse 64/8 3
    python -m benchmarks.diagnosis --throughput

Every scenario × shape × seed is written, read back as bytes and judged: was each trouble named in
the right layers (hit), how many steps after it began (delay), was it dated rightly, and what was
said that is not so (false alarms in 10,000 steps). Beside it, on the same records, three limits on
one number. Layers and tokens are drawn from the seed. An interrupted run resumes where it stopped;
``--fresh`` starts again. Ends with 1 if a target is missed.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.scenarios import SCENARIOS
from benchmarks.scoreboard.judging import show_throughput
from benchmarks.scoreboard.plan import QUICK_SHAPES, SHAPES, Case, cases, fingerprint, numbers
from benchmarks.scoreboard.results import complete
from benchmarks.scoreboard.table import failures, show, show_one


def main() -> int:
    options = parsed()
    if options.one:
        scenario, shape, seed = options.one
        show_one(Case(scenario, shape, int(seed)))
        return 0
    print(machine())
    if options.throughput:
        show_throughput()
        return 0
    return scoreboard(options)


def scoreboard(options: argparse.Namespace) -> int:
    """Judge what is still to be judged, print the table; 1 if a target is missed."""
    seeds: range = options.seeds
    name = f"diagnosis-seeds-{seeds.start}-{seeds.stop}.jsonl"
    path = options.results or Path(tempfile.gettempdir()) / name
    if options.fresh:
        path.unlink(missing_ok=True)
    wanted = list(cases(options.scenarios, options.shapes, seeds))
    scores = complete(wanted, path, options.jobs)
    older = sum(score.code != fingerprint() for score in scores)
    print(f"{len(scores):,} runs, seeds {seeds.start} to {seeds.stop - 1}, code {fingerprint()}")
    if older:
        print(f"{older:,} of them were judged by other code: --fresh judges them again")
    show(scores)
    print(f"results: {path}")
    failed = failures(scores)
    for line in failed or ["all targets met"]:
        print(line if not failed else f"TARGET MISSED: {line}")
    return 1 if failed else 0


def parsed() -> argparse.Namespace:
    """The command line; ``--quick`` changes the defaults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=a_range, metavar="FIRST:STOP")
    parser.add_argument("--scenarios", type=names, default=list(SCENARIOS))
    parser.add_argument("--shapes", type=shapes, metavar="E/k,…")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--results", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--fresh", action="store_true", help="forget the results file first")
    parser.add_argument("--quick", action="store_true", help="two seeds, two shapes")
    parser.add_argument("--one", nargs=3, metavar=("SCENARIO", "E/k", "SEED"))
    parser.add_argument("--throughput", action="store_true", help="records a second, and memory")
    options = parser.parse_args()
    options.seeds = options.seeds or (range(2) if options.quick else range(20))
    options.shapes = options.shapes or list(QUICK_SHAPES if options.quick else SHAPES)
    return options


def a_range(text: str) -> range:
    """``0:20`` as a range."""
    first, _, stop = text.partition(":")
    return range(int(first), int(stop))


def names(text: str) -> list[str]:
    """Scenarios by name."""
    chosen = text.split(",")
    if unknown := [name for name in chosen if name not in SCENARIOS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: no such scenario")
    return chosen


def shapes(text: str) -> list[str]:
    """Shapes like ``64/8``."""
    chosen = text.split(",")
    for shape in chosen:
        numbers(shape)
    return chosen


if __name__ == "__main__":
    sys.exit(main())
