"""Damaged files of other tools by the ten thousand through their readers.

    python -m benchmarks.fuzz_sources --format wandb --cases 50000 [--first SEED]

A case is a number: ``--first 4711 --cases 1`` is file 4711 again. Files that hurt are saved below
``--keep``. Memory is limited, and a case that takes longer than ten seconds is a failure too. Ends
with 1 if any hurt.
"""

import resource
import signal
import sys
import time
import traceback
from pathlib import Path

from benchmarks.machine import machine, options_of
from tests.sources.damage import NAMES, case, read_damaged

MEMORY_BYTES = 1 << 30
CASE_TIMEOUT_S = 10


def main() -> None:
    formats, keep = tuple(sorted(NAMES)), Path("fuzz-failures")
    options = options_of(__doc__, format=formats, cases=50_000, first=1_000_000, keep=keep)
    print(machine())
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, too_long)
    hurt = 0
    for name in options.format:
        started = time.monotonic()
        failed = run(name, range(options.first, options.first + options.cases), options.keep)
        hurt += failed
        took = time.monotonic() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{name}: {options.cases:,} cases from {options.first} in {took:.0f} s, {failed} hurt; "
            f"peak memory {peak:.0f} MB"
        )
    sys.exit(1 if hurt else 0)


def run(name: str, seeds: range, keep: Path) -> int:
    """The number of cases that failed."""
    failed = 0
    for seed in seeds:
        data = case(name, seed)
        signal.alarm(CASE_TIMEOUT_S)
        try:
            read_damaged(name, data)
        except Exception:
            failed += 1
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{name}-{seed}").write_bytes(data)
            trace = traceback.format_exc()
            (keep / f"{name}-{seed}.txt").write_text(trace, errors="backslashreplace")
            print(f"{name} {seed}, saved below {keep}: {trace.splitlines()[-1][:200]!a}")
        finally:
            signal.alarm(0)
    return failed


def too_long(*_: object) -> None:
    raise TimeoutError(f"a case took longer than {CASE_TIMEOUT_S} s")


if __name__ == "__main__":
    main()
