"""A run log as arrays, read with nothing but ``json``: S steps, L routers, E experts."""

# ruff: noqa: N802  # letters after the underscore are shapes

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

WARM_UP = 100
"""Nobody is judged in the first steps, nor in as many after a restart."""


class ArrayLog:
    """One finished run."""

    def __init__(self, path: Path) -> None:
        self.header: dict[str, Any] = {}
        self.restarts: list[int] = []
        """First steps of what was written after a restart."""
        self.ended: dict[str, Any] = {}
        steps: dict[int, dict[str, Any]] = {}
        for line in path.read_text("utf-8").splitlines():
            record = json.loads(line)
            if record["kind"] == "run":
                self.header = record
                if (again := record.get("resumed_at_step")) is not None:
                    self.restarts.append(again)
                    steps = {step: kept for step, kept in steps.items() if step < again}
            elif record["kind"] == "step":
                steps[record["step"]] = record
            elif record["kind"] == "event" and record["event"] == "end":
                self.ended = record
        self._records = [steps[step] for step in sorted(steps)]
        self.steps = np.array(sorted(steps))
        model = self.header["model"]
        self.names: list[str] = model["layer_names"]
        self.num_experts, self.top_k = int(model["num_experts"]), int(model["top_k"])
        self.counts_SLE = np.array([r["tokens_per_expert"] for r in self._records], np.int64)
        self.tokens = np.array([r["tokens"] for r in self._records], np.int64)

    @property
    def finished(self) -> bool:
        """It came to its planned end."""
        return self.ended.get("reason") == "finished"

    @property
    def seconds(self) -> float:
        """From its header to its end; of a resumed run only the last part."""
        return float(self.ended.get("time", np.nan)) - float(self.header["time"])

    @property
    def judged_S(self) -> np.ndarray:
        """Steps at which an alarm may come: after the warm-up, and after the one of a restart."""
        judged = self.steps > WARM_UP
        for again in self.restarts:
            judged &= (self.steps < again) | (self.steps >= again + WARM_UP)
        return judged

    def scalar(self, *keys: str) -> np.ndarray:
        """A number a step, NaN where there is none."""
        return np.array([_number(_at(record, keys)) for record in self._records])

    def per_router(self, key: str) -> np.ndarray:
        """A summary of every router a step, ``(S, L)``."""
        return np.array([_numbers(r["router"].get(key), len(self.names)) for r in self._records])

    def bias(self) -> np.ndarray | None:
        """The selection bias ``(S, L, E)``, where there is one."""
        rows = [record.get("expert_bias") for record in self._records]
        return np.array(rows, float) if all(rows) else None


def _at(record: dict[str, Any], keys: Sequence[str]) -> Any:
    value: Any = record
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)  # "NaN" and "Infinity" included


def _numbers(values: Any, size: int) -> list[float]:
    return [np.nan] * size if values is None else [_number(value) for value in values]
