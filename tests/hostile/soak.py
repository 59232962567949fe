"""A writer that is killed again and again, and resumes; a reader that follows all of it.

python -m tests.hostile.soak LOG BACK PLAIN    (the writer, for as long as it may live)
"""

import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from microscope_tui.runlog import RunFile, RunLogWriter, RunReader, StepEntry, encode_record
from microscope_tui.watch import RunWatch, view_of
from tests.hostile.outcome import difference, outcome

ROOT = Path(__file__).resolve().parents[2]
TOKENS, EXPERTS, ROUTERS = 128, 8, 4
_PLAIN_BYTES = 700


@dataclass(frozen=True, slots=True)
class Soaked:
    lives: int
    seconds: float
    steps: int
    restarts: int
    defects: int
    size: int
    difference: str
    """Between who followed and who read afterwards; empty if there is none."""


def soak(
    folder: Path, *, seed: int, lives: int | None = None, seconds: float | None = None
) -> Soaked:
    """Let a writer live so many times, or so long, each time killed at a random moment."""
    rng, started = random.Random(seed), time.monotonic()
    path = folder / "metrics.jsonl"
    watch = RunWatch(RunFile("soak", path, 0.0))
    lived = 0
    while (lived < lives) if lives else (time.monotonic() - started < (seconds or 1.0)):
        _live(path, watch, rng, plain=rng.random() < 0.4)
        lived += 1
        _tear(path, rng)
    RunLogWriter(path).close()  # the last torn line is repaired, as the next writer would
    watch.read_all()
    fresh = RunWatch(RunFile("soak", path, 0.0))
    fresh.read_all()
    history = watch.scan.history
    return Soaked(
        lives=lived,
        seconds=round(time.monotonic() - started, 1),
        steps=watch.latest.record.step if watch.latest else 0,
        restarts=len(history.restarts),
        defects=watch.defects.count,
        size=path.stat().st_size,
        difference=_difference(watch, fresh),
    )


def _difference(watch: RunWatch, fresh: RunWatch) -> str:
    one, other = outcome(watch), outcome(fresh)
    if one["history"] and other["history"] and max(one["history"][1], other["history"][1]) > 1:
        # Rows of several steps begin where the reader was when they were merged.
        one["history"], other["history"] = _curves(watch), _curves(fresh)
    return difference(one, other)


def _curves(watch: RunWatch) -> object:
    history = watch.scan.history
    ends = [
        (column.low, column.high)
        for name in ("loss", "effective_experts", "max_load")
        for column in history.columns(name, 0, 1)
    ]
    return history.last_step, history.restarts, ends


def _live(path: Path, watch: RunWatch, rng: random.Random, *, plain: bool) -> None:
    back = rng.choice([0, 3, 40])
    before = path.stat().st_size if path.exists() else 0
    command = [sys.executable, "-m", "tests.hostile.soak", str(path), str(back), str(int(plain))]
    writer = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)
    try:
        waited = time.monotonic() + 30
        while not path.exists() or path.stat().st_size <= before:
            if writer.poll() is not None or time.monotonic() > waited:
                raise RuntimeError(f"the writer does not write (exit {writer.poll()})")
            watch.advance()
            time.sleep(0.002)
        end = time.monotonic() + rng.uniform(0.01, 0.25)
        while time.monotonic() < end:
            watch.advance(rng.choice([300, 4000, 1 << 20]))
            view_of(watch, 10, 10)
            time.sleep(rng.choice([0.0, 0.001, 0.01]))
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()


def _tear(path: Path, rng: random.Random) -> None:
    """A kill rarely falls into a write, so cut what the last one wrote as a crash may."""
    if rng.random() < 0.5:
        with path.open("rb+") as file:
            size = file.seek(0, 2)
            file.truncate(max(size - rng.randrange(1, 200), size // 2))


def write(path: Path, back: int, *, plain: bool) -> None:
    """The writer: resumes ``back`` steps before the last one in the log, until it is killed."""
    last = _last_step(path)
    first = max(1, last + 1 - back)
    log = RunLogWriter(path)  # cuts off what is torn
    log.write(_header(first if last else None))
    step = first
    while True:
        if plain:  # somebody else's writer: pieces of lines, as a buffered file writes them
            _append_in_pieces(path, step)
        else:
            log.write(_record(step))
        step += 1
        if step % 20 == 0:
            time.sleep(0.005)


def _append_in_pieces(path: Path, step: int) -> None:
    line = encode_record(_record(step))
    with path.open("ab", buffering=0) as file:
        for start in range(0, len(line), _PLAIN_BYTES):
            file.write(line[start : start + _PLAIN_BYTES])


def _last_step(path: Path) -> int:
    reader, last = RunReader("soak"), 0
    if path.exists():
        for entry in reader.feed(path.read_bytes()):
            last = entry.record.step if isinstance(entry, StepEntry) else last
    return last


def _header(resumed_at_step: int | None) -> dict[str, object]:
    layers = list(range(ROUTERS))
    model = {"name": "soak", "layers": layers, "num_experts": EXPERTS, "top_k": 1}
    record = {"kind": "run", "format_version": 1, "run": "soak", "time": time.time()}
    return record | {"resumed_at_step": resumed_at_step, "model": model, "planned_steps": 10**6}


def _record(step: int) -> dict[str, object]:
    rng = random.Random(step)
    rows = []
    for _ in range(ROUTERS):
        row = [TOKENS // EXPERTS] * EXPERTS
        taken = rng.randrange(TOKENS // EXPERTS)
        row[0], row[1] = row[0] - taken, row[1] + taken
        rows.append(row)
    record = {"kind": "step", "step": step, "time": time.time(), "loss": rng.random()}
    record |= {"tokens": TOKENS, "expert_bias": [[0.25] * EXPERTS] * ROUTERS}
    return record | {"tokens_per_expert": rows}


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]), plain=sys.argv[3] == "1")
