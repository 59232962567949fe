"""The scoreboard of the diagnosis: synthetic runs with known truth, judged through the real path.

    python -m benchmarks.diagnosis [--seeds 0:20] [--jobs 2] [--quick] [--results FILE.jsonl]
    python -m benchmarks.diagnosis --scenarios slow-collapse,shock --shapes 8/2,64/8
    python -m benchmarks.diagnosis --one slow-collapse 64/8 3
    python -m benchmarks.diagnosis --remedies [--seeds 0:2] [--shapes 8/2,64/8]
    python -m benchmarks.diagnosis --throughput

Every scenario × shape × seed is written, read back as bytes and judged: was each trouble named in
the right layers (hit), how many steps after it began (delay), was it dated correctly, and what was
wrong (false alarms in 10,000 steps). Beside it, on the same records, three limits on
one number. Layers and tokens are drawn from the seed. ``--quick`` takes two seeds and two shapes.
An interrupted run resumes where it stopped; ``--fresh`` starts again. ``--remedies`` judges
sick runs and their twins that follow the advice. ``--throughput`` measures records a second, and
memory. Ends with 1 if a target is missed.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import machine, options_of
from benchmarks.scenarios import SCENARIOS
from benchmarks.scoreboard.judging import show_throughput
from benchmarks.scoreboard.plan import QUICK_SHAPES, SHAPES, Case, cases, fingerprint
from benchmarks.scoreboard.remedies import show_remedies
from benchmarks.scoreboard.results import complete
from benchmarks.scoreboard.table import failures, show, show_one


def main() -> int:
    options = options_of(
        __doc__, seeds="", scenarios="", shapes="", jobs=2, results=Path, fresh=False,
        quick=False, one=[], remedies=False, throughput=False,
    )  # fmt: skip
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
    few = options.quick or options.remedies
    first, _, stop = (options.seeds or ("0:2" if few else "0:20")).partition(":")
    seeds = range(int(first), int(stop))
    shapes = options.shapes.split(",") if options.shapes else QUICK_SHAPES if few else SHAPES
    if options.remedies:
        return min(1, show_remedies(shapes, seeds))
    scenarios = options.scenarios.split(",") if options.scenarios else list(SCENARIOS)
    if unknown := sorted(set(scenarios) - set(SCENARIOS)):
        sys.exit(f"--scenarios {', '.join(unknown)}: no such scenario")
    name = f"diagnosis-seeds-{seeds.start}-{seeds.stop}.jsonl"
    path = options.results or Path(tempfile.gettempdir()) / name
    if options.fresh:
        path.unlink(missing_ok=True)
    wanted = list(cases(scenarios, shapes, seeds))
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


if __name__ == "__main__":
    sys.exit(main())
