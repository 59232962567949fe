"""What a live run costs the line: bytes to a real terminal, for one kind of run and all colours.

    python -m benchmarks.bandwidth [--seconds 60] [--spread 0.35] [--cv 0.075]
        [--colours truecolor 256 16]

The run has 58 layers x 256 experts and adds a record a second; its experts differ (log-normal
spread of their mean loads), and every load trembles from step to step. The window is 140 x 50,
reached over SSH. Only bytes are counted, so other work on the machine does not change the numbers.
"""

import fcntl
import random
import re
import statistics
import struct
import tempfile
import termios
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path

from benchmarks.big_log import COLUMNS, MOVES, ROWS, press
from benchmarks.following import SETTLING_S, STEP_SHOWN, sent_a_second, share, watch
from benchmarks.live_writer import writing
from benchmarks.machine import options_of
from benchmarks.open_log import history_is_shown
from benchmarks.terminal import Terminal, microscope
from microscope_tui.runlog import LOG_NAME

COLOURS: dict[str, Mapping[str, str]] = {
    "truecolor": {"TERM": "xterm-256color", "COLORTERM": "truecolor"},
    "256": {"TERM": "xterm-256color", "COLORTERM": ""},
    "16": {"TERM": "xterm", "COLORTERM": ""},
}
_HELD = r"([\d,]+) PAUSED"
_AT_REST_S = 1.0  # twice the pace of the screen: what is painted by then is all there is
_SIZES = ((20, 5), (39, 9), (40, 10), (60, 20), (80, 24), (100, 30), (140, 50), (200, 60))


class Sitting(Terminal):
    """The microscope on one log, in a window that can change its size."""

    def __init__(
        self,
        log: Path,
        columns: int = COLUMNS,
        rows: int = ROWS,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(microscope(log), columns=columns, rows=rows, environment=environment)

    def wait_until_at_rest(self, timeout: float = 120.0) -> None:
        """Until there is a step on the screen and nothing has been sent for a while."""
        self.wait_until(lambda text: bool(re.search(STEP_SHOWN, text)), timeout)
        until = time.monotonic() + timeout
        sent = -1
        while sent != self.sent:
            if time.monotonic() > until:
                raise TimeoutError(f"still painting after {timeout:.0f} s:\n{self.text}")
            sent = self.sent
            self.read(_AT_REST_S)

    def resize(self, columns: int, rows: int) -> None:
        """Another size of the window; the program gets SIGWINCH."""
        self._screen.resize(rows, columns)
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def opening(log: Path, steps: int) -> float:
    """Seconds from the start of the process to the whole history on the screen."""
    with Sitting(log, 120, 40) as sitting:
        return sitting.wait_until(lambda text: history_is_shown(text, steps))


def following(
    log: Path, cv: float, colours: Mapping[str, str], seconds: float
) -> tuple[float, float]:
    """Bytes a second and the share of a core for a training of one record a second.

    The loads have this coefficient of variation. The log is made for it, and must not exist.
    """
    training = writing(log, "--rate", 1, "--history", 200, "--cv", cv)
    with training, Sitting(log.parent, environment=colours) as sitting:
        sitting.wait_until(lambda text: bool(re.search(STEP_SHOWN, text)))
        sitting.read(SETTLING_S)
        step = shown_step(sitting)
        first, *_, last = watch(sitting, None, seconds)
        if shown_step(sitting) - step < 0.8 * seconds:
            raise RuntimeError(f"it does not follow the run:\n{sitting.text}")
    return sent_a_second(first, last), share(first, last)


def silence(log: Path, seconds: float) -> int:
    """Bytes that are sent in so many seconds in which nothing changes."""
    with Sitting(log) as sitting:
        sitting.wait_until_at_rest()
        sent = sitting.sent
        sitting.read(seconds)
        return sitting.sent - sent


def keys(log: Path, presses: int) -> tuple[list[float], list[float]]:
    """Milliseconds from a key to what it paints: to another layer, and to the step before."""
    with Sitting(log) as sitting:
        sitting.wait_until_at_rest()
        directions = cycle(MOVES)
        moves = [press(sitting, next(directions)) for _ in range(presses)]
        return moves, [_step_back(sitting) for _ in range(presses)]


def _step_back(sitting: Sitting) -> float:
    sitting.read(random.uniform(0.01, 0.1))
    before = _held(sitting.text)
    # The ribbon is below the table: when it has arrived, so has the heatmap.
    return sitting.react("[", lambda text: _held(text) not in (before, None))


def resize_storm(log: Path, resizes: int) -> list[str]:
    """Lines that differ from those of a fresh start after a storm of sizes; all of them if dead."""
    sizes = random.Random(0)
    with Sitting(log, 120, 40) as fresh:
        fresh.wait_until_at_rest()
        expected = fresh.text.split("\n")
    with Sitting(log, 80, 24) as sitting:
        sitting.wait_until_at_rest()
        for _ in range(resizes):
            sitting.resize(*sizes.choice(_SIZES))
            sitting.read(sizes.uniform(0.0, 0.1))
        sitting.resize(120, 40)
        sitting.read(_AT_REST_S)
        if not sitting.open:
            return expected
        sitting.wait_until_at_rest()
        pairs = zip(expected, sitting.text.split("\n"), strict=True)
        return [wanted for wanted, seen in pairs if wanted != seen]


def shown_step(sitting: Sitting) -> int:
    """The step on the screen, 0 before there is one."""
    found = re.search(STEP_SHOWN, sitting.text)
    return int(found[1].replace(",", "")) if found else 0


def _held(text: str) -> str | None:
    found = re.search(_HELD, text)
    return found[1] if found else None


WINDOW_S, OPENING_S = 10.0, 10.0
_LOOK_S = 0.05
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
    options = options_of(__doc__, seconds=60.0, spread=0.35, cv=0.075, colours=tuple(COLOURS))
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
    log: Path, cv: float, spread: float, colours: Mapping[str, str], seconds: float
) -> Sent:
    """Follow a run that is written to ``log`` meanwhile; the log must not exist."""
    loads = ("--cv", cv, "--spread", spread)
    samples: list[tuple[float, int]] = [(0.0, 0)]
    steps: list[tuple[float, int]] = []
    with (
        writing(log, "--rate", 1, "--history", 200, *loads),
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
