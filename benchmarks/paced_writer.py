"""A training without the training: appends whole records to run logs at a steady pace.

    python -m benchmarks.paced_writer LOG [LOG ...] [--rate 20] [--history 2000]
        [--routers 58 --experts 256]

Writes ``--history`` steps to every log at once, says ``ready``, and then ``--rate`` steps a second
to each, until it is terminated.
"""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.bulk import bulk_lines

PLANNED_STEPS = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("logs", type=Path, nargs="+")
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--history", type=int, default=2000)
    parser.add_argument("--routers", type=int, default=58)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--top-k", type=int, default=8)
    options = parser.parse_args()
    writers = []
    for seed, log in enumerate(options.logs):
        log.parent.mkdir(parents=True, exist_ok=True)
        lines = bulk_lines(
            routers=options.routers,
            num_experts=options.experts,
            top_k=options.top_k,
            steps=PLANNED_STEPS,
            seed=seed,
            started=time.time() - options.history / options.rate,
            step_time_s=1.0 / options.rate,
            run=log.parent.name,
        )
        writers.append(_Writer(log, lines))
    for writer in writers:
        writer.write(options.history)
    print("ready", flush=True)
    with suppress(KeyboardInterrupt):
        pace(writers, options.rate)


class _Writer:
    """Appends the lines of one run, every step with one write."""

    def __init__(self, path: Path, lines: Iterator[bytes]) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._lines = lines

    def write(self, steps: int) -> None:
        """Append so many steps, and whatever stands before them."""
        while steps > 0:
            line = next(self._lines)
            os.write(self._file, line)
            steps -= line.startswith(b'{"kind":"step"')


def pace(writers: Sequence[_Writer], rate: float) -> None:
    """One step to each, ``rate`` times a second; a late step does not delay the ones after it."""
    due = time.monotonic()
    while True:
        for writer in writers:
            writer.write(1)
        due += 1.0 / rate
        time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    main()
