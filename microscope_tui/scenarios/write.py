"""Write a synthetic run to disk, at once or at the pace of a training."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from microscope_tui import measures
from microscope_tui.runlog.records import FORMAT_VERSION, LOG_NAME
from microscope_tui.runlog.writer import RunLogWriter
from microscope_tui.scenarios.synthetic import BIAS_UPDATE_RATE, SCENARIOS, Shape, Step, Truth


class UnknownScenario(ValueError):
    """There is no scenario of this name; the message lists the ones there are."""


def write_run(
    folder: Path,
    scenario: str,
    *,
    shape: Shape | None = None,
    seed: int = 0,
    wait: Callable[[], bool] | None = None,
) -> Truth:
    """Write ``folder/metrics.jsonl`` and return what a right diagnosis would find.

    Args:
        scenario: a name in ``SCENARIOS``.
        wait: called after every step; false ends the run early (for live demos).

    Raises:
        UnknownScenario: no such scenario.
        OSError: the folder cannot be written.
    """
    if scenario not in SCENARIOS:
        known = ", ".join(SCENARIOS)
        raise UnknownScenario(f"unknown scenario {scenario!r}: choose one of {known}")
    shape = shape or Shape()
    truth, steps = SCENARIOS[scenario](shape, random.Random(seed))
    log = RunLogWriter(folder / LOG_NAME)
    log.write(_header(folder.name, shape))
    log.write({"kind": "event", "event": "checkpoint", "step": 0, "time": time.time()})
    _write_steps(log, steps, shape, wait)
    log.close()
    return truth


def _write_steps(
    log: RunLogWriter, steps: Iterator[Step], shape: Shape, wait: Callable[[], bool] | None
) -> None:
    reason, step, before = "finished", 0, time.time()
    for item in steps:
        step, now = item.step, time.time()
        log.write(_record(item, shape, now, now - before))
        before = now
        if step % 100 == 0:
            log.write({"kind": "event", "event": "checkpoint", "step": step, "time": now})
        if wait is not None and not wait():
            reason = "stopped"
            break
    log.write(
        {"kind": "event", "event": "end", "step": step, "time": time.time(), "reason": reason}
    )


def _header(run: str, shape: Shape) -> dict[str, object]:
    depths = list(range(1, shape.routers + 1))
    return {
        "kind": "run",
        "format_version": FORMAT_VERSION,
        "run": run,
        "time": time.time(),
        "planned_steps": shape.steps,
        "resumed_at_step": None,
        "profile": "pretrain",
        "model": {
            "name": "synthetic",
            "layers": depths,
            "layer_names": [f"L{depth}" for depth in depths],
            "num_experts": shape.num_experts,
            "top_k": shape.top_k,
            "num_shared_experts": 1,
            "score_function": "sigmoid",
            "norm_top_k": True,
            "capacity_factor": shape.capacity_factor,
        },
        "balance": {"method": "bias", "bias_update_rate": BIAS_UPDATE_RATE},
        "source": {"writer": "moe-microscope demo", "counts": "exact"},
    }


def _record(item: Step, shape: Shape, now: float, elapsed: float) -> dict[str, object]:
    rows = item.tokens_per_expert
    router: dict[str, list[float | None]] = {
        **{name: list(values) for name, values in item.router.items()},
        **measures.summarise(rows),
    }
    return {
        "kind": "step",
        "step": item.step,
        "time": now,
        "loss": round(item.loss, 5),
        "learning_rate": item.learning_rate,
        "grad_norm": round(item.grad_norm, 4),
        "tokens": item.tokens,
        "tokens_per_s": round(item.tokens / elapsed, 1) if elapsed > 0.01 else None,
        "step_time_s": round(elapsed, 4),
        "router": {
            name: [None if v is None else round(v, 5) for v in values]
            for name, values in router.items()
        },
        "expert_bias": [[round(b, 4) for b in row] for row in item.expert_bias],
        "tokens_per_expert": rows,
    }
