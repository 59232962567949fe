"""``RunRecorder`` turns what a trainer knows of a step into one line of the run log.

The trainer hands over raw counts and router readings; everything that can be derived from the
counts is derived here, once, so that every writer of logs agrees with every reader. On the
training thread a step is checked and copied, and its collapse index worked out; rounding,
the other summaries, encoding and the disk wait for nobody (``runlog/background.py``).
"""

import math
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from microscope_tui import measures
from microscope_tui.runlog.background import SYNC_TIMEOUT_S, BackgroundLog, without_matrices
from microscope_tui.runlog.records import FORMAT_VERSION, LOG_NAME
from microscope_tui.runlog.writer import RunLogWriter


class RunRecorder:
    """Writes one run's log, ``run_dir/metrics.jsonl``. Recording never stops the training."""

    def __init__(
        self,
        run_dir: Path,
        *,
        run: str,
        planned_steps: int | None,
        model: Mapping[str, Any],
        balance: Mapping[str, Any],
        config: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
        resumed_at_step: int | None = None,
        profile: str = "pretrain",
        writer: str = "moe_model",
        counts_every: int = 1,
        background: bool = True,
    ) -> None:
        """Open the log and write its ``run`` record.

        Args:
            model: the ``model`` object of the run record; ``num_experts`` and ``top_k`` are used
                here too (an integer, or a list with one entry per router).
            balance: the ``balance`` object of the run record.
            counts_every: the matrices (counts and bias of every expert) are in the lines of step 1
                and of every step that this number divides; the summaries are in every line.
            background: write on a thread of its own. Without it every record is in the file when
                the call returns, and a slow disk is a slow training.

        Raises:
            OSError: the folder cannot be written at all.
            ValueError: ``counts_every`` is less than 1.
        """
        if counts_every < 1:
            raise ValueError(f"counts_every is {counts_every}: choose 1 (every step) or more")
        self._depths = list(model["layers"])
        self._num_experts = _per_router(_plain(model["num_experts"]), len(self._depths))
        self._top_k = _per_router(_plain(model["top_k"]), len(self._depths))
        self._counts_every = counts_every
        log = RunLogWriter(run_dir / LOG_NAME)
        self._log = log
        self._background = BackgroundLog(log, finish=self._finish) if background else None
        head = {
            "kind": "run",
            "format_version": FORMAT_VERSION,
            "run": run,
            "time": time.time(),
            "planned_steps": planned_steps,
            "resumed_at_step": resumed_at_step,
            "profile": profile,
            "model": model,
            "balance": balance,
            "source": {"writer": writer, "counts": "exact"},
            "world_size": 1,
            "expert_parallel_size": 1,
            "config": config or {},
            "versions": versions or {},
        }
        self._write(_plain(head))

    def record_step(
        self,
        *,
        step: int,
        loss: float,
        tokens: int,
        tokens_per_expert: Sequence[Sequence[int]],
        expert_bias: Sequence[Sequence[float]] | None = None,
        router: Mapping[str, Sequence[float | None]] | None = None,
        losses: Mapping[str, float] | None = None,
        **scalars: float | None,
    ) -> list[float | None]:
        """Write one step and return the collapse index of every router.

        Numbers may be anything that converts to Python's; rows may be arrays.

        Args:
            step: optimizer steps completed, this one included; the first is 1.
            loss: next-token cross-entropy in nats, mean over the global batch.
            tokens: real tokens of the global batch.
            tokens_per_expert: selected (token, expert) pairs, one row per router.
            expert_bias: uncentred selection bias, one row per router.
            router: further per-router summaries by their name in the format (``entropy`` …).
            losses: other loss terms, unweighted.
            scalars: ``learning_rate``, ``grad_norm``, ``tokens_per_s``, ``step_time_s``,
                ``memory_bytes`` …

        Raises:
            ValueError: something has not one entry per router, or a row not one per expert.
        """
        counts = self._matrix("tokens_per_expert", tokens_per_expert, _counts)
        effective = [measures.effective_experts(row) for row in counts]
        readings = {
            name: _plain(self._one_per_router(name, row)) for name, row in (router or {}).items()
        }
        record: dict[str, Any] = {"kind": "step", "step": int(step), "time": round(time.time(), 3)}
        record |= {"loss": _plain(loss), "losses": _plain(losses or {}), "tokens": _plain(tokens)}
        record |= {name: _rounded(_plain(value), 6) for name, value in scalars.items()}
        record["router"] = {**readings, "effective_experts": effective}
        # The matrices come last: a reader of a long history never has to look at them.
        record["expert_bias"] = []
        if expert_bias is not None and self._wants_matrices(step):
            record["expert_bias"] = self._matrix("expert_bias", expert_bias, _biases)
        record["tokens_per_expert"] = counts
        self._write(record)
        sizes = zip(effective, self._num_experts, self._top_k, strict=True)
        return [measures.collapse_index(value, e, k) for value, e, k in sizes]

    def record_event(self, *, step: int, event: str, **fields: Any) -> None:
        """Write an event: ``eval``, ``checkpoint``, ``alert`` …"""
        head = {"kind": "event", "step": step, "time": round(time.time(), 3), "event": event}
        self._write(_plain(head | fields))

    def sync(self, timeout_s: float = SYNC_TIMEOUT_S) -> bool:
        """Force the log to disk; call it around a checkpoint, so that both tell the same story.

        Returns ``False`` where that fails or takes longer than ``timeout_s``.
        """
        return self._log.sync() if self._background is None else self._background.sync(timeout_s)

    def close(self, *, step: int, reason: str) -> None:
        """Write the ``end`` event and whatever waits, sync and close; bounded, see ``background``.

        Args:
            reason: ``finished``, ``stopped``, ``collapse``, ``signal`` or ``failed``.
        """
        self.record_event(step=step, event="end", reason=reason)
        (self._background or self._log).close()

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._background is None:
            self._log.write(self._finish(record, True))
        else:
            self._background.write(record)

    def _finish(self, record: Mapping[str, Any], matrices: bool) -> Mapping[str, Any]:
        """The line of a record: rounded, all that counts tell, the matrices where they are due."""
        if record["kind"] != "step":
            return record
        counts = record["tokens_per_expert"]
        router = {
            **record["router"],
            "max_load": [measures.max_load(row) for row in counts],
            "dead_experts": [measures.dead_experts(row) for row in counts],
            "starved_experts": [measures.starved_experts(row) for row in counts],
        }
        router = {name: [_rounded(v) for v in row] for name, row in router.items()}
        if not matrices or not self._wants_matrices(record["step"]):
            return without_matrices({**record, "router": router}, False)
        bias = [_four_digits(row) for row in record["expert_bias"]]
        rows = [row.tolist() for row in counts]
        return {**record, "router": router, "expert_bias": bias, "tokens_per_expert": rows}

    def _wants_matrices(self, step: int) -> bool:
        return step == 1 or step % self._counts_every == 0

    def _one_per_router(self, name: str, values: Any) -> list[Any]:
        values = values.tolist() if hasattr(values, "tolist") else values
        if len(values) != len(self._depths):
            raise ValueError(
                f"{name} has {len(values)} entries and the model has {len(self._depths)} routers "
                f"(in layers {self._depths}): hand over one per router, in forward order"
            )
        return list(values)

    def _matrix(self, name: str, rows: Any, convert: Callable[[Any], "array[Any]"]) -> list[Any]:
        """A compact copy of one row per router, so that the caller may reuse its own."""
        matrix = [convert(row) for row in self._one_per_router(name, rows)]
        for row, depth, experts in zip(matrix, self._depths, self._num_experts, strict=True):
            if len(row) != experts and (row or convert is _counts):
                raise ValueError(
                    f"{name} has {len(row)} entries for the router in layer {depth}, which has "
                    f"{experts} experts: hand over one per expert"
                )
        return matrix


def _per_router(value: int | Sequence[int], routers: int) -> list[int]:
    return [value] * routers if isinstance(value, int) else list(value)


def _counts(row: Sequence[int]) -> "array[int]":
    try:
        return array("q", row)  # whatever is an integer, numpy's included
    except TypeError:  # counts that were summed as float64
        return array("q", [int(count) for count in row])


def _biases(row: Sequence[float] | None) -> "array[float]":
    return array("d", () if row is None else row)


def _four_digits(row: "array[float]") -> msgspec.Raw | list[float | None]:
    """A row of biases as it stands in the line: half of all work is here, so one format does it."""
    if not all(map(math.isfinite, row)):
        return [_rounded(bias, 4) for bias in row]
    return msgspec.Raw(("[" + ",".join(["%.4g"] * len(row)) % tuple(row) + "]").encode())


def _plain(value: Any) -> Any:
    """A copy in Python's own types; what JSON cannot hold becomes its text."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numbers and arrays of numpy and torch
        return _plain(value.tolist())
    return str(value)


def _rounded(value: float | None, digits: int = 5) -> float | None:
    """``digits`` significant digits: half the bytes, and more than any screen shows."""
    return value if value is None or isinstance(value, int) else float(f"{value:.{digits}g}")
