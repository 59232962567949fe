"""What a live run costs the line: bytes to a real terminal, for one kind of run and all colours.

    python -m benchmarks.bandwidth [--seconds 60] [--spread 0.35] [--cv 0.075]
        [--colours truecolor 256 16]

The run has 58 layers x 256 experts and adds a record a second; its experts differ (log-normal
spread of their mean loads), and every load trembles from step to step. The window is 140 x 50,
reached over SSH. Only bytes are counted, so other work on the machine does not change the numbers.
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.beside import writing
from benchmarks.sittings import Sitting, shown_step
from microscope_tui.runlog import LOG_NAME

WINDOW_S, OPENING_S = 10.0, 10.0
_LOOK_S = 0.05
COLOURS: dict[str, Mapping[str, str]] = {
    "truecolor": {"TERM": "xterm-256color", "COLORTERM": "truecolor"},
    "256": {"TERM": "xterm-256color", "COLORTERM": ""},
    "16": {"TERM": "xterm", "COLORTERM": ""},
}
OVER_SSH = {"SSH_CONNECTION": "192.0.2.1 22 192.0.2.2 22", "TMUX": "", "STY": ""}


@dataclass(frozen=True, slots=True)
class Sent:
    """What went to the terminal while a run was followed."""

    opening: int
    """Bytes of the first ten seconds."""
    most: float
    """Bytes a second, the highest mean over ten seconds after the opening."""
    median: float
    """The median of those means."""
    refreshes: tuple[float, float]
    """The shortest and the longest time between two steps on the screen."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--spread", type=float, default=0.35)
    parser.add_argument("--cv", type=float, default=0.075)
    parser.add_argument("--colours", nargs="+", choices=COLOURS, default=list(COLOURS))
    options = parser.parse_args()
    print("| colours | first 10 s | most in 10 s | median of 10 s | refreshed every |")
    print("|---|---|---|---|---|")
    for name in options.colours:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / name / LOG_NAME
            sent = followed(log, options.cv, options.spread, COLOURS[name], options.seconds)
        print(
            f"| {name} | {sent.opening / 1000:.0f} kB | {sent.most / 1000:.1f} kB/s "
            f"| {sent.median / 1000:.1f} kB/s | {sent.refreshes[0]:.1f} to "
            f"{sent.refreshes[1]:.1f} s |",
            flush=True,
        )


def followed(
    log: Path,
    cv: float,
    spread: float,
    colours: Mapping[str, str],
    seconds: float,
) -> Sent:
    """Follow a run that is written to ``log`` meanwhile; the log must not exist."""
    arguments = [str(log), "--cv", str(cv), "--spread", str(spread)]
    samples: list[tuple[float, int]] = [(0.0, 0)]
    steps: list[tuple[float, int]] = []
    with (
        writing("benchmarks.noisy_writer", arguments),
        Sitting(log.parent, environment={**OVER_SSH, **colours}) as sitting,
    ):
        while sitting.age < OPENING_S + seconds:
            sitting.read(_LOOK_S)
            samples.append((sitting.age, sitting.sent))
            step = shown_step(sitting)
            if step and (not steps or step != steps[-1][1]):
                steps.append((sitting.age, step))
        if not sitting.open or len(steps) < 3:
            raise RuntimeError(f"it does not follow the run:\n{sitting.text}")
    rates = rates_of(samples)
    late = [at for at, _ in steps if at >= OPENING_S]
    between = [after - before for before, after in pairwise(late)]
    opening = max(sent for at, sent in samples if at <= OPENING_S)
    return Sent(opening, max(rates), statistics.median(rates), (min(between), max(between)))


def rates_of(samples: list[tuple[float, int]]) -> list[float]:
    """Bytes a second over every ten seconds that begin after the opening."""
    rates, first = [], 0
    for at, sent in samples:
        while samples[first + 1][0] <= at - WINDOW_S:
            first += 1
        if at - WINDOW_S >= OPENING_S:
            rates.append((sent - samples[first][1]) / (at - samples[first][0]))
    return rates


if __name__ == "__main__":
    main()
