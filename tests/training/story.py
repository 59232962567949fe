"""What two logs of the same run must have in common, and what may happen to a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

Log = list[dict[str, Any]]
Train = Callable[..., int]
ReadLog = Callable[[str], Log]
Capsys = pytest.CaptureFixture[str]


def steps(log: Log) -> Log:
    """The records of steps."""
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


def before_step(
    trainer: ModuleType, monkeypatch: pytest.MonkeyPatch, step: int, happens: Callable[[], Any]
) -> None:
    """Let something happen to a run just before it makes ``step``."""

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
