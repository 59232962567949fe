"""A run log as arrays, read with nothing but ``json``: S steps, L routers, E experts.

Flags over steps become stretches of trouble; every limit has a grey zone around it.
"""

# ruff: noqa: N802  # letters after the underscore are shapes

import json
import math
import warnings
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

WARM_UP = 100
"""No verdict in the first steps, nor in as many after a restart."""


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

    def scalar(self, key: str, within: str | None = None) -> np.ndarray:
        """A number a step, NaN where there is none."""
        records = self._records if within is None else [r.get(within, {}) for r in self._records]
        return np.array([_number(record.get(key)) for record in records])

    def per_router(self, key: str) -> np.ndarray:
        """A summary of every router a step, ``(S, L)``."""
        return np.array([_numbers(r["router"].get(key), len(self.names)) for r in self._records])

    def bias(self) -> np.ndarray | None:
        """The selection bias ``(S, L, E)``, where there is one."""
        rows = [record.get("expert_bias") for record in self._records]
        return np.array(rows, float) if all(rows) else None


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)  # "NaN" and "Infinity" included


def _numbers(values: Any, size: int) -> list[float]:
    return [np.nan] * size if values is None else [_number(value) for value in values]


WHOLE_RUN = "run"
"""Stands for a layer where the trouble is the run's."""


class Zone(IntEnum):
    """How strictly a limit is read."""

    CERTAIN = -1
    """Clearly beyond the limit, and for longer than asked: it must be found."""
    NOMINAL = 0
    POSSIBLE = 1
    """Hardly at the limit: it may be found."""

    def below(self, limit: float) -> float:
        """An upper limit of what is bad when it is low."""
        return limit * (1 + 0.06 * self)

    def above(self, limit: float) -> float:
        """A lower limit of what is bad when it is high."""
        return limit * (1 - 0.06 * self)

    def steps(self, needed: int) -> int:
        """How long it must last."""
        return math.ceil(needed * (1 - 0.2 * self))

    @property
    def share(self) -> float:
        """How many of those steps must be over."""
        return 0.9 if self is Zone.POSSIBLE else 1.0


@dataclass(frozen=True, slots=True)
class Stretch:
    """Trouble that lasted long enough to speak of it."""

    onset: int
    known: int
    """The step at which it had lasted long enough."""
    last: int


Stretches = dict[str, list[Stretch]]
"""By layer."""


def lasting(
    steps_S: np.ndarray,
    over_S: np.ndarray,
    needed: int,
    share: float = 1.0,
    judged_S: np.ndarray | None = None,
) -> list[Stretch]:
    """Where at least ``share`` of the last ``needed`` steps are over, at steps that are judged."""
    if len(over_S) < needed:
        return []
    sums = np.cumsum(np.concatenate([[0], over_S.astype(int)]))
    enough_S = np.zeros(len(over_S), bool)
    enough_S[needed - 1 :] = sums[needed:] - sums[:-needed] >= math.ceil(share * needed)
    if judged_S is not None:
        enough_S &= judged_S
    edges = np.flatnonzero(np.diff(np.concatenate([[0], enough_S.astype(int), [0]])))
    found = []
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        onset = max(0, start - needed + 1)
        while onset > 0 and over_S[onset - 1]:
            onset -= 1
        found.append(Stretch(*(int(steps_S[i]) for i in (onset, start, end - 1))))
    return found


def trailing_median(values_SL: np.ndarray) -> np.ndarray:
    """Median of the values 220 to 20 steps before, once there are forty; NaN before that."""
    found = np.full(values_SL.shape, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nothing but NaN: no median either
        for at in range(60, len(values_SL)):
            found[at] = np.nanmedian(values_SL[max(0, at - 220) : at - 20], axis=0)
    return found


def summed(counts_SLE: np.ndarray, window: int) -> np.ndarray:
    """Counts of the last ``window`` steps, fewer at the start."""
    sums = np.cumsum(counts_SLE, axis=0)
    sums[window:] -= sums[:-window].copy()
    return sums


def collapse_index(counts: np.ndarray, top_k: int, even: float = 0.45) -> np.ndarray:
    """``(exp(H) − k) / (E − k)`` over the last axis.

    The busiest experts are left out, at most max(1, k ÷ 4) and as few as suffice, where the others
    have ``even`` or more: if 95 % of the tokens choose them, or c of all is below 0.45.
    """
    span = counts.shape[-1] - top_k
    plain = (_effective(counts) - top_k) / span
    if top_k < 2:
        return plain
    tokens = counts.sum(-1, keepdims=True) / top_k
    always = np.clip((counts >= 0.95 * tokens).sum(-1), 1, max(1, top_k // 4))
    excusable = (plain < 0.45) | (counts.max(-1) >= 0.95 * tokens[..., 0])
    order, found = np.argsort(-counts, axis=-1, kind="stable"), plain
    for left_out in range(max(1, top_k // 4), 0, -1):
        rest = counts.copy()
        np.put_along_axis(rest, order[..., :left_out], 0, axis=-1)
        index = (_effective(rest) - (top_k - left_out)) / span
        found = np.where(excusable & (left_out >= always) & (index >= even), index, found)
    return found


def _effective(counts: np.ndarray) -> np.ndarray:
    share = counts / np.maximum(1, counts.sum(-1, keepdims=True))
    logs = np.log(np.where(share > 0, share, 1.0))
    return np.exp(-(share * logs).sum(-1))
