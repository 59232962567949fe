"""Writes a synthetic run, to disk or as lines, at once or at the pace of a training."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from microscope_tui.runlog import LOG_NAME, RunHeader, encode_record, rounded
from microscope_tui.scenarios.catalogue import SCENARIOS, Scenario
from microscope_tui.scenarios.course import BIAS_UPDATE_RATE
from microscope_tui.scenarios.run import Record, Run, Shape, Step, Truth

CHECKPOINT_EVERY = 100
STEPS_PER_SECOND = 10.0
_STARTED = 1_790_000_000.0
_MERGED = ("model", "source")


def write_run(
    folder: Path,
    scenario: str | Scenario,
    *,
    shape: Shape | None = None,
    seed: int = 0,
    wait: Callable[[], bool] | None = None,
) -> Truth:
    """Write ``folder/metrics.jsonl`` and return the findings of a correct diagnosis.

    Args:
        folder: made if needed; an existing log is continued.
        scenario: one, or its name in ``SCENARIOS``.
        shape: by default a small model, for as many steps as the scenario needs.
        seed: the same one gives the same faults and numbers.
        wait: called after every step; false ends the run as stopped (for live demos).

    Raises:
        ValueError: the scenario does not fit this shape.
        OSError: the folder cannot be written.
    """
    run = _built(_known(scenario), shape, seed)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG_NAME).open("ab", buffering=0) as file:
        for line in _encoded(run, folder.name, time.time, wait):
            file.write(line)
    return run.truth


def lines(scenario: str | Scenario, shape: Shape, seed: int) -> tuple[Truth, Iterator[bytes]]:
    """The same run as encoded lines with synthetic times: the same seed gives the same bytes.

    ``ValueError``: the scenario does not fit this shape.
    """
    found = _known(scenario)
    run = _built(found, shape, seed)
    return run.truth, _encoded(run, found.name, count(_STARTED).__next__, None)


@contextmanager
def writing(folder: Path, scenario: str, seed: int) -> Iterator[None]:
    """Write it in the background; it ends as stopped with the body."""
    stop = threading.Event()

    def wait() -> bool:
        return not stop.wait(1.0 / STEPS_PER_SECOND)

    def write() -> None:
        write_run(folder, scenario, seed=seed, wait=wait)

    folder.mkdir(parents=True, exist_ok=True)
    writer = threading.Thread(target=write, name="scenario-writer", daemon=True)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join(timeout=2.0)


def _known(scenario: str | Scenario) -> Scenario:
    return SCENARIOS[scenario] if isinstance(scenario, str) else scenario


def _built(scenario: Scenario, shape: Shape | None, seed: int) -> Run:
    shape = shape or Shape(steps=scenario.steps)
    if not scenario.fits(shape):
        raise ValueError(f"scenario {scenario.name!r} does not fit {shape}")
    return scenario.build(shape, random.Random(seed))


def _encoded(
    run: Run, name: str, clock: Callable[[], float], wait: Callable[[], bool] | None
) -> Iterator[bytes]:
    records = _records(run, name, clock, wait)
    encoded = map(encode_record, run.edit(records) if run.edit else records)
    return _torn(encoded) if run.torn else encoded


def _torn(encoded: Iterator[bytes]) -> Iterator[bytes]:
    last = b""
    for line in encoded:
        if last:
            yield last
        last = line
    yield last[: len(last) // 2]


def _records(
    run: Run, name: str, clock: Callable[[], float], wait: Callable[[], bool] | None
) -> Iterator[Record]:
    reason = "finished"
    step = 0
    now = clock()
    yield _header(run, name, now)
    yield {"kind": "event", "event": "checkpoint", "step": 0, "time": now}
    for item in run.steps:
        step = item.step
        before = now
        now = clock()
        yield _record(item, now, now - before)
        if step % CHECKPOINT_EVERY == 0:
            yield {"kind": "event", "event": "checkpoint", "step": step, "time": now}
        if wait is not None and not wait():
            reason = "stopped"
            break
    if not run.torn:
        yield {"kind": "event", "event": "end", "step": step, "time": now, "reason": reason}


def _header(run: Run, name: str, now: float) -> Record:
    shape = run.shape
    depths = list(range(1, shape.routers + 1))
    header = RunHeader(
        run=name,
        time=now,
        planned_steps=shape.steps,
        resumed_at_step=None,
        model={
            "name": "synthetic",
            "layers": depths,
            "layer_names": [f"L{depth}" for depth in depths],
            "num_experts": shape.num_experts,
            "top_k": shape.top_k,
            "num_shared_experts": 1,
            "score_function": "sigmoid",
            "norm_top_k": shape.top_k > 1,
            "capacity_factor": shape.capacity_factor,
        },
        balance={"method": "bias", "bias_update_rate": BIAS_UPDATE_RATE, "update": "sign"},
        source={"writer": "moe-microscope demo", "counts": "exact"},
    ).to_json()
    for key, change in run.header.items():
        header[key] = header[key] | change if key in _MERGED else change
    return header


def _record(item: Step, now: float, elapsed: float) -> Record:
    record: Record = {
        "kind": "step",
        "step": item.step,
        "time": now,
        "loss": round(item.loss, 5),
        "losses": {name: round(value, 5) for name, value in item.losses.items()},
        "learning_rate": item.learning_rate,
        "grad_norm": round(item.grad_norm, 4),
        "tokens": item.tokens,
        "tokens_per_s": round(item.tokens / elapsed, 1) if elapsed > 0.01 else None,
        "step_time_s": round(elapsed, 4),
        "router": {
            name: [rounded(value, 6) for value in values] for name, values in item.router.items()
        },
        "expert_bias": item.expert_bias,
        "tokens_per_expert": item.tokens_per_expert,
    }
    if not item.losses:
        del record["losses"]
    return record
