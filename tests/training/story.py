"""What two logs of the same run must have in common, and what may happen to a run."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Log = list[dict[str, Any]]
Train = Callable[..., int]
ReadLog = Callable[[str], Log]
Capsys = pytest.CaptureFixture[str]


def steps(log: Log) -> Log:
    return [record for record in log if record["kind"] == "step"]


def story(log: Log) -> Log:
    """All records after the last header, without clock times, speeds and memory."""
    head = max(place for place, record in enumerate(log) if record["kind"] == "run")
    return [
        {
            key: value
            for key, value in record.items()
            if key not in ("time", "tokens_per_s") and not key.endswith(("_s", "_bytes"))
        }
        for record in log[head + 1 :]
    ]


def from_step(log: Log, first: int) -> Log:
    """The records of a story from step ``first`` on, wherever its checkpoints are."""
    return [
        {**record, "values": {**record.get("values", {}), "path": None}}
        for record in log
        if record["step"] >= first
    ]


class KilledError(BaseException):
    """Ends a run of this process as SIGKILL would: nothing may catch it."""


def before_step(trainer: ModuleType, monkeypatch: Any, step: int, happens: Any) -> None:
    def stepping(run: Any, at: int) -> Any:
        if at == step:
            happens()
        return real(run, at)

    real = trainer.optimizer_step
    monkeypatch.setattr(trainer, "optimizer_step", stepping)


def die() -> None:
    raise KilledError


def wait_until(condition: Callable[[], Any], *programs: Any) -> None:
    """Until ``condition`` holds; fails when a program ends before, or after two minutes."""
    deadline = time.monotonic() + 120
    while not condition():
        for program in programs:
            assert program.poll() is None, program.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


HUGE = "1e999"  # written without its quotes: JSON may hold it, and Python makes it infinity


def edit(folder: Path, place: str, value: object, *, seal: bool = False) -> None:
    """Let ``checkpoint.json`` say ``value`` at ``place``, such as model/vocab_size.

    Without a ``sha256``, as a stranger would write it; ``seal`` leaves the former one.
    """
    path = folder / "checkpoint.json"
    description = json.loads(path.read_text("utf-8"))
    if not seal:
        del description["sha256"]
    inner = description
    *outer, last = place.split("/")
    for name in outer:
        inner = inner[name]
    inner[last] = value
    path.write_text(json.dumps(description).replace(f'"{HUGE}"', HUGE), "utf-8")


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
