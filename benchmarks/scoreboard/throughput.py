"""How fast records are decoded and judged, and whether memory stays bounded."""

import multiprocessing
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bulk import bulk_lines
from microscope_tui.diagnosis import Criteria
from microscope_tui.runlog import RunReader
from microscope_tui.watch import Judge

CHUNK = 1 << 20
REPEATS = 3


@dataclass(frozen=True, slots=True)
class Load:
    """A healthy run to be judged."""

    routers: int
    num_experts: int
    top_k: int
    tokens: int
    steps: int


LOADS = (Load(10, 8, 2, 4096, 5_000), Load(58, 256, 8, 131_072, 3_000))


def show_throughput(repeats: int = REPEATS) -> None:
    """Print records per second and peak memory; each figure is from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for load in LOADS:
            log, twice = Path(folder) / "once.jsonl", Path(folder) / "twice.jsonl"
            _write(log, load, load.steps)
            _write(twice, load, 2 * load.steps)
            measured = [_apart(log) for _ in range(repeats)]
            rates = sorted(load.steps / seconds for seconds, _ in measured)
            _, doubled = _apart(twice)
            peak = max(peak for _, peak in measured)
            print(
                f"{load.routers} layers x {load.num_experts} experts, {load.steps:,} steps, "
                f"{log.stat().st_size / 1e6:.0f} MB: best {rates[-1]:,.0f} records/s "
                f"({rates[0]:,.0f} to {rates[-1]:,.0f}, {repeats} runs), "
                f"{rates[-1] * log.stat().st_size / load.steps / 1e6:,.0f} MB/s"
            )
            print(f"  peak memory {peak:.1f} MB, {doubled - peak:+.1f} MB with twice the steps")
            log.unlink()
            twice.unlink()


def _write(path: Path, load: Load, steps: int) -> None:
    lines = bulk_lines(
        routers=load.routers,
        num_experts=load.num_experts,
        top_k=load.top_k,
        tokens=load.tokens,
        steps=steps,
    )
    with path.open("wb") as file:
        file.writelines(lines)


def _apart(path: Path) -> tuple[float, float]:
    """Seconds and peak MB, in a fresh process: memory that was once taken stays in the peak."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(judge_log, (path,))


def judge_log(path: Path) -> tuple[float, float]:
    """Judge a whole log; seconds, and the peak memory of this process in MB."""
    started = time.perf_counter()
    reader, engine = RunReader(path.name), Judge(path.name, Criteria())
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            for entry in reader.feed(chunk):
                engine.take(entry)
    seconds = time.perf_counter() - started
    assert engine.diagnosis is not None
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
