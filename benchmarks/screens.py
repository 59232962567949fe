"""What the screen costs and how fast it answers, in a real terminal, against its targets.

    python -m benchmarks.screens [--quick]

Opening a run of 10 layers × 8 experts × 10,000 steps; then, with 58 layers × 256 experts at
140 × 50: bytes a second to the terminal and the share of one core while a training adds a record
a second (counted from ten seconds after the start), bytes while nothing changes, key press to
paint, and 50 changes of the window's size; and what a run whose experts differ sends over SSH, as
``benchmarks.bandwidth`` measures it. Exits with 1 if a target is missed. ``--quick`` takes three
minutes instead of fourteen: less of everything, and calm loads only.
"""

import math
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import bandwidth
from benchmarks.bandwidth import COLOURS, following, keys, opening, resize_storm, silence
from benchmarks.bulk import write_bulk
from benchmarks.machine import machine, options_of
from microscope_tui.runlog import LOG_NAME
from microscope_tui.scenarios import Shape, write_run

MOST_OPENING_S = 0.45
MOST_SENT = 10_000.0
MOST_CPU = 0.05
MOST_MOVE_MS, MOST_STEP_MS = 50.0, 100.0
CALM, NOISY = 0.15, 0.5
"""Coefficients of variation of the loads: a healthy run, and a very uneasy one."""
UNEVEN_CV, UNEVEN_SPREAD = 0.075, 0.35
"""A run whose experts differ by much more than they tremble."""
LONG_AGO = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything is measured."""

    openings: int = 5
    seconds: float = 60.0
    presses: int = 60
    resizes: int = 50
    noises: tuple[float, ...] = (CALM, NOISY)


QUICK = Plan(openings=3, seconds=10.0, presses=20, noises=(CALM,))


@dataclass(frozen=True, slots=True)
class Result:
    """One row of the table; without a target it is there to be read."""

    name: str
    value: str
    target: str = ""
    met: bool = True


def main() -> None:
    plan = QUICK if options_of(__doc__, quick=False).quick else Plan()
    print(machine())
    print("58 layers x 256 experts unless noted otherwise")
    print(f"load of the machine before: {os.getloadavg()[0]:.1f}")
    print("\n| | measured | target | |\n|---|---|---|---|")
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        for result in results(Path(folder), plan):
            verdict = ("ok" if result.met else "MISSED") if result.target else ""
            print(f"| {result.name} | {result.value} | {result.target} | {verdict} |", flush=True)
            missed += not result.met
    sys.exit(1 if missed else 0)


def results(folder: Path, plan: Plan) -> Iterator[Result]:
    """Every row, as it is measured."""
    yield opened(folder / "small", plan)
    yield from followed(folder / "live", plan)
    log = finished_log(folder / "large")
    sent = silence(log, 10.0)
    yield Result("bytes in 10 s in which nothing changes", f"{sent:,}", "0", sent == 0)
    moves, steps = keys(log, plan.presses)
    yield answered("key to paint, another layer", moves, MOST_MOVE_MS)
    yield answered("key to paint, `[` the step before", steps, MOST_STEP_MS)
    wrong, said = resize_storm(log, plan.resizes), f"{plan.resizes} changes of size"
    yield Result(f"lines wrong after {said}", f"{len(wrong)}", "0", not wrong)


def opened(run: Path, plan: Plan) -> Result:
    """Process start to the main screen with its data."""
    steps = 10_000
    write_run(run, "collapse", shape=Shape(routers=10, num_experts=8, steps=steps))
    taken = [opening(run, steps) for _ in range(plan.openings)]
    middle = statistics.median(taken)
    value = f"median {middle:.2f} s, {min(taken):.2f} to {max(taken):.2f} ({plan.openings})"
    target = f"≤ {MOST_OPENING_S:.2f} s"
    return Result("start to main screen, 10 x 8 x 10,000", value, target, middle <= MOST_OPENING_S)


def followed(folder: Path, plan: Plan) -> Iterator[Result]:
    """What it costs to follow, in few and in many colours, calm and noisy."""
    for cv in plan.noises:
        for name, palette in (("256", "256 colours"), ("truecolor", "truecolor")):
            log = folder / f"{cv:g}-{palette[:3]}" / LOG_NAME
            sent, cpu = following(log, cv, COLOURS[name], plan.seconds)
            said = f"1 record/s, CV {cv:g}, {palette}"
            yield rate(f"sent, {said}", sent, MOST_SENT if cv == CALM else math.inf)
            yield Result(f"CPU, {said}", f"{cpu:.2%}", f"≤ {MOST_CPU:.0%}", cpu <= MOST_CPU)
    for name, colours in COLOURS.items():
        log = folder / f"uneven-{name}" / LOG_NAME
        found = bandwidth.followed(log, UNEVEN_CV, UNEVEN_SPREAD, colours, 2 * plan.seconds)
        said, slowest = f"experts that differ, over SSH, {name}", found.refreshes[1]
        yield rate(f"most sent in 10 s, {said}", found.most, MOST_SENT)
        silent = f"longest without a refresh, {said}"
        yield Result(silent, f"{slowest:.1f} s", "≤ 4 s", slowest <= 4)


def rate(name: str, sent: float, most: float) -> Result:
    """Bytes a second, as kilobytes."""
    limit = f"≤ {most / 1000:.0f} kB/s" if math.isfinite(most) else ""
    return Result(name, f"{sent / 1000:.1f} kB/s", limit, sent <= most)


def finished_log(folder: Path) -> Path:
    """A large run that ended long ago: its age in words does not change."""
    log = folder / LOG_NAME
    write_bulk(log, steps=1000, run=folder.name)
    os.utime(log, (LONG_AGO, LONG_AGO))
    return folder


def answered(name: str, taken: list[float], most: float) -> Result:
    """Median, 95 % and worst of some milliseconds; the target is for the 95 %."""
    ranked = sorted(taken)
    late = ranked[int(0.95 * (len(ranked) - 1))]
    value = f"median {statistics.median(ranked):.1f} ms, 95 % {late:.1f}, worst {ranked[-1]:.1f}"
    return Result(f"{name} ({len(ranked)})", value, f"95 % ≤ {most:.0f} ms", late <= most)


if __name__ == "__main__":
    main()
