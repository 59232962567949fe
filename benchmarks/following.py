"""What it costs to follow a live run, and whether it stays that way.

    python -m benchmarks.following [--seconds 60] [--rate 20] [--routers 58] [--experts 256]

A process appends 20 records a second of 58 layers × 256 experts to a log that already holds some
history; ``moe-microscope`` follows it in a pseudo-terminal of 140 × 50 with 256 colours. Measured,
from ten seconds after its start: its share of one core, its memory at the start, every minute and
at the end, the bytes a second it sends to the terminal, and how many steps the screen is behind.
"""

import re
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.live_writer import writing
from benchmarks.machine import machine, options_of
from benchmarks.terminal import Terminal, microscope

COLUMNS, ROWS = 140, 50
COLOURS_256 = {"TERM": "screen-256color", "COLORTERM": ""}
SETTLING_S = 10.0
STEP_SHOWN = r"step ([\d,]+)"
SAMPLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the follower."""

    at: float
    cpu_s: float
    memory_mb: float
    sent: int
    behind: int | None
    """Steps in the log that the screen does not show yet; ``None`` where it shows no step."""


def main() -> None:
    options = options_of(__doc__, seconds=60.0, rate=20.0, history=2000, routers=58, experts=256)
    print(machine())
    print(
        f"{options.routers} layers x {options.experts} experts at {options.rate:g} records/s, "
        f"{options.history:,} steps before, {options.seconds:g} s"
    )
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "live" / "metrics.jsonl"
        size = ("--routers", options.routers, "--experts", options.experts)
        pace = ("--rate", options.rate, "--history", options.history)
        with writing(log, *pace, *size), window(log.parent) as terminal:
            shown = terminal.wait_until(lambda text: bool(re.search(STEP_SHOWN, text)))
            terminal.read(SETTLING_S)
            samples = list(watch(terminal, log, options.seconds))
    print(f"{'first step shown, s':>24}: {shown:.2f}")
    report(samples)


def window(place: Path) -> Terminal:
    return Terminal(microscope(place), columns=COLUMNS, rows=ROWS, environment=COLOURS_256)


def watch(terminal: Terminal, log: Path | None, seconds: float) -> Iterator[Sample]:
    """A sample a second, the first one at once."""
    started = terminal.age
    while True:
        cost = terminal.usage()
        shown = re.search(STEP_SHOWN, terminal.text) if log else None
        behind = last_step(log) - int(shown[1].replace(",", "")) if log and shown else None
        yield Sample(terminal.age - started, cost.cpu_s, cost.memory_mb, terminal.sent, behind)
        if terminal.age - started >= seconds:
            return
        terminal.read(SAMPLE_S)
        if not terminal.open:
            raise RuntimeError(f"the program ended; the screen:\n{terminal.text}")


def last_step(log: Path) -> int:
    """The newest step whose line is at least begun in the log."""
    with log.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 1_000_000))
        return int(re.findall(rb'"kind":"step","step":(\d+)', file.read())[-1])


def report(samples: Sequence[Sample]) -> None:
    first, last = samples[0], samples[-1]
    minutes = [first, *(after for before, after in pairwise(samples) if new_minute(before, after))]
    if last.at - minutes[-1].at > 10:  # the rest of a minute, if it is given
        minutes.append(last)
    shares = [share(before, after) for before, after in pairwise(minutes)]
    behind = [sample.behind for sample in samples if sample.behind is not None]
    memory = [sample.memory_mb for sample in samples]
    rows = {
        "CPU, share of one core": f"{share(first, last):.1%}",
        "by the minute": " ".join(f"{value:.1%}" for value in shares),
        "memory, MB": f"{first.memory_mb:.1f} at first, {last.memory_mb:.1f} at the end, "
        f"{max(memory):.1f} at most",
        "memory by the minute": " ".join(f"{sample.memory_mb:.1f}" for sample in minutes),
        "sent, bytes/s": f"{sent_a_second(first, last):,.0f}",
        "steps behind": f"{statistics.median(behind):.0f} median, {max(behind)} at most"
        if behind
        else "no step on the screen",
    }
    for name, value in rows.items():
        print(f"{name:>24}: {value}")


def new_minute(before: Sample, sample: Sample) -> bool:
    """True for the first sample of a minute."""
    return int(before.at // 60) != int(sample.at // 60)


def sent_a_second(first: Sample, last: Sample) -> float:
    """Bytes to the terminal."""
    return (last.sent - first.sent) / (last.at - first.at)


def share(first: Sample, last: Sample) -> float:
    """Processor time per time between two samples."""
    return (last.cpu_s - first.cpu_s) / max(1e-9, last.at - first.at)


if __name__ == "__main__":
    main()
