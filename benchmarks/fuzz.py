"""Hostile logs by the hundred thousand through all that reads logs; and a writer killed for hours.

    python -m benchmarks.fuzz --cases 200000 [--first SEED] [--jobs 2] [--keep FOLDER]
    python -m benchmarks.fuzz --soak 600

A case is a number: ``--first 4711 --cases 1`` is log 4711 again, and an interrupted run resumes
with ``--first`` at the number it printed last. Logs that hurt are saved below ``--keep``. Ends
with 1 if any did.
"""

import multiprocessing
import resource
import sys
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, wait
from functools import partial
from pathlib import Path

from benchmarks.machine import machine, options_of
from tests.hostile.journey import travel
from tests.hostile.logs import hostile_log
from tests.hostile.soak import soak

BLOCK = 500
WHOLE_EVERY = 10
"""One of so many cases goes through every command, the others through reader and screen."""
MEMORY_BYTES = 2 << 30
BLOCK_TIMEOUT_S = 600.0

Failure = tuple[int, str]


def main() -> None:
    options = options_of(
        __doc__, cases=200_000, first=1_000_000, jobs=2, keep=Path("fuzz-failures"), soak=float
    )
    print(machine())
    if options.soak:
        with tempfile.TemporaryDirectory() as folder:
            soaked = soak(Path(folder), seconds=options.soak, seed=options.first)
        print(soaked)
        sys.exit(1 if soaked.difference else 0)
    started = time.monotonic()
    failures = run(options.first, options.cases, options.jobs, options.keep)
    took = time.monotonic() - started
    print(
        f"{options.cases:,} logs from {options.first} in {took:.0f} s with {options.jobs} jobs, "
        f"{len(failures)} hurt; peak memory {peak_mb():.0f} MB a job"
    )
    sys.exit(1 if failures else 0)


def run(first: int, cases: int, jobs: int, keep: Path) -> list[Failure]:
    """All cases, in blocks, with progress."""
    failures: list[Failure] = []
    spawn, end = multiprocessing.get_context("spawn"), first + cases
    started = said = time.monotonic()
    done = 0
    with ProcessPoolExecutor(jobs, spawn) as pool:
        starts = range(first, end, BLOCK)
        waiting = {pool.submit(run_block, at, min(at + BLOCK, end)) for at in starts}
        while waiting:
            finished, waiting = wait(waiting, BLOCK_TIMEOUT_S, "FIRST_COMPLETED")
            if not finished:
                sys.exit(f"no block of {BLOCK} logs came back within {BLOCK_TIMEOUT_S:g} s")
            for block in finished:
                count, failed = block.result()
                done += count
                for failure in failed:
                    report(failure, keep)
                failures += failed
            if time.monotonic() - said > 10:
                said = time.monotonic()
                rate = done / (said - started)
                print(f"at {first + done}: {done:,} done, {rate:.0f}/s, {len(failures)} hurt")
    return failures


def run_block(first: int, end: int) -> tuple[int, list[Failure]]:
    """Some cases in this process, whose memory is bounded."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first, end):
            case = partial(travel, seed, Path(folder))
            try:
                case(whole=seed % WHOLE_EVERY == 0 or end - first == 1)
            except Exception:
                failures.append((seed, traceback.format_exc()))
    return end - first, failures


def report(failure: Failure, keep: Path) -> None:
    """Save the log and print what happened."""
    seed, reason = failure
    keep.mkdir(parents=True, exist_ok=True)
    (keep / f"{seed}.jsonl").write_bytes(hostile_log(seed))
    (keep / f"{seed}.txt").write_text(reason, errors="backslashreplace")
    last = reason.strip().splitlines()[-1]
    print(f"log {seed}, saved below {keep}: {last[:300].encode('ascii', 'backslashreplace')!r}")


def peak_mb() -> float:
    """Of the largest job so far."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


if __name__ == "__main__":
    main()
