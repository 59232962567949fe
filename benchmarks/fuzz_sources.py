"""Damaged files of other tools by the ten thousand through their readers.

    python -m benchmarks.fuzz_sources --format wandb --cases 50000 [--first SEED]

A case is a number: ``--first 4711 --cases 1`` is file 4711 again. Files that hurt are saved below
``--keep``. Memory is limited, and a case that takes longer than ten seconds is a failure too. Ends
with 1 if any hurt.
"""

import argparse
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

from benchmarks.machine import machine
from tests.sources.fuzz import FORMATS, case

MEMORY_BYTES = 1 << 30
CASE_TIMEOUT_S = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", choices=sorted(FORMATS), action="append")
    parser.add_argument("--cases", type=int, default=50_000)
    parser.add_argument("--first", type=int, default=1_000_000, help="number of the first case")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    options = parser.parse_args()
    print(machine())
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, too_long)
    hurt = 0
    for name in options.format or sorted(FORMATS):
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
            FORMATS[name](data)
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
