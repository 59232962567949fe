"""A synthetic run handed to a recorder step by step, and what a reader of its file finds."""

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.scenarios import SCENARIOS
from microscope_tui.diagnosis import Diagnosis
from microscope_tui.probe import Alert, RunRecorder
from microscope_tui.scenarios import Shape, lines
from microscope_tui.watch import RunWatch
from tests.conftest import open_log

Record = dict[str, Any]
EVEN, COLLAPSED = [512, 500, 520, 516, 510, 514, 512, 512], [2048, 2048, 0, 0, 0, 0, 0, 0]
LAYERS = [1, 2, 3, 4]
HEADER = {
    "run": "r",
    "planned_steps": 400,
    "profile": "pretrain",
    "model": {"layers": LAYERS, "num_experts": 8, "top_k": 2},
    "balance": {"method": "bias", "bias_update_rate": 0.001},
}
STEPS = 400
_WRITTEN_BY_ITSELF = ("kind", "time", "event")


def step(number: int, rows: Sequence[list[int]], **changes: Any) -> Record:
    known = {"loss": 2.0, "tokens": 2048, "tokens_per_expert": list(rows)}
    return {"kind": "step", "step": number, **known, **changes}


def collapsing(first: int, last: int, layers: Sequence[int] = (3,), at: int = 200) -> list[Record]:
    """Steps of four routers; from ``at`` on those in ``layers`` are collapsed."""
    return [
        step(n, [COLLAPSED if n >= at and depth in layers else even(n, depth) for depth in LAYERS])
        for n in range(first, last + 1)
    ]


def even(number: int, depth: int) -> list[int]:
    turn = (number + 3 * depth) % 8
    return EVEN[turn:] + EVEN[:turn]


@lru_cache(maxsize=16)
def records_of(scenario: str) -> tuple[Record, ...]:
    """The header, 400 steps of three routers and the checkpoints of a scenario."""
    written = lines(SCENARIOS[scenario], Shape(routers=3, steps=STEPS), 0)[1]
    found = [json.loads(line) for line in written]
    return tuple(r for r in found if r.get("event") != "end")


def open_recorder(folder: Path, header: Record = HEADER, **changes: Any) -> RunRecorder:
    keys = ("run", "planned_steps", "profile", "model", "balance")
    fields = {key: header[key] for key in keys}
    return RunRecorder(folder / "run", **(fields | changes))


def replay(recorder: RunRecorder, records: Iterable[Record]) -> list[Alert]:
    alerts = []
    for record in records:
        fields = {key: value for key, value in record.items() if key not in _WRITTEN_BY_ITSELF}
        if record["kind"] == "step":
            recorder.record_step(**_numbers(fields))
            alerts += recorder.alerts()
        elif record["kind"] == "event":
            recorder.record_event(event=record["event"], **fields)
    recorder.sync()
    return alerts


def watch(folder: Path) -> RunWatch:
    return open_log(folder / "run" / "metrics.jsonl")


def written(folder: Path) -> list[Record]:
    lines = (folder / "run" / "metrics.jsonl").read_bytes().splitlines()
    return [json.loads(line) for line in lines]


def episodes_of(diagnosis: Diagnosis | None) -> set[tuple[Any, ...]]:
    """(step, rule, severity, router, onset) of every step at which an episode began or worsened."""
    return {
        (grade.step, e.rule, grade.severity.label, e.router.name if e.router else None, e.onset)
        for e in diagnosis.episodes
        for grade in e.grades
    }


def _numbers(value: Any) -> Any:
    """What JSON had to name, as the number that a trainer would hand over."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) else value
