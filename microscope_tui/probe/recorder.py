"""``RunRecorder`` turns what a trainer knows of a step into one line of the run log.

The trainer hands over raw counts and router readings; everything that can be derived from the
counts is derived here, once, so that every writer of logs agrees with every reader.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from microscope_tui import measures
from microscope_tui.runlog.records import FORMAT_VERSION, LOG_NAME
from microscope_tui.runlog.writer import RunLogWriter

_logger = logging.getLogger("moe_microscope.probe")


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
    ) -> None:
        """Open the log and write its ``run`` record.

        Args:
            model: the ``model`` object of the run record; ``num_experts`` and ``top_k`` are used
                here too (an integer, or a list with one entry per router).
            balance: the ``balance`` object of the run record.

        Raises:
            OSError: the folder cannot be written at all.
        """
        routers = len(model["layers"])
        self._num_experts = _per_router(model["num_experts"], routers)
        self._top_k = _per_router(model["top_k"], routers)
        self._log = RunLogWriter(run_dir / LOG_NAME)
        self._log.write(
            {
                "kind": "run",
                "format_version": FORMAT_VERSION,
                "run": run,
                "time": time.time(),
                "planned_steps": planned_steps,
                "resumed_at_step": resumed_at_step,
                "profile": profile,
                "model": dict(model),
                "balance": dict(balance),
                "source": {"writer": writer, "counts": "exact"},
                "world_size": 1,
                "expert_parallel_size": 1,
                "config": dict(config or {}),
                "versions": dict(versions or {}),
            }
        )

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
        """
        derived = measures.summarise(tokens_per_expert)
        summaries = {**(router or {}), **derived}
        record: dict[str, Any] = {"kind": "step", "step": step, "time": round(time.time(), 3)}
        record |= {"loss": loss, "losses": dict(losses or {}), "tokens": tokens}
        record |= {name: _rounded(value, 6) for name, value in scalars.items()}
        record["router"] = {name: [_rounded(v) for v in row] for name, row in summaries.items()}
        # The matrices come last: a reader of a long history never has to look at them.
        record["expert_bias"] = [[_rounded(b, 4) for b in row] for row in expert_bias or []]
        record["tokens_per_expert"] = [list(row) for row in tokens_per_expert]
        self._log.write(record)
        sizes = zip(derived["effective_experts"], self._num_experts, self._top_k, strict=True)
        return [measures.collapse_index(value, e, k) for value, e, k in sizes]

    def record_event(self, *, step: int, event: str, **fields: Any) -> None:
        """Write an event: ``eval``, ``checkpoint``, ``alert`` …"""
        head = {"kind": "event", "step": step, "time": round(time.time(), 3), "event": event}
        self._log.write(head | fields)

    def sync(self) -> None:
        """Force the log to disk; call it after a checkpoint, so that both tell the same story."""
        self._log.sync()

    def close(self, *, step: int, reason: str) -> None:
        """Write the ``end`` event, sync and close.

        Args:
            reason: ``finished``, ``stopped``, ``collapse``, ``signal`` or ``failed``.
        """
        self.record_event(step=step, event="end", reason=reason)
        if self._log.lost_records:
            _logger.warning("%s: %d records are lost", self._log.path, self._log.lost_records)
        self._log.close()


def _per_router(value: int | Sequence[int], routers: int) -> list[int]:
    return [value] * routers if isinstance(value, int) else list(value)


def _rounded(value: float | None, digits: int = 5) -> float | None:
    """``digits`` significant digits: half the bytes, and more than any screen shows."""
    return value if value is None or isinstance(value, int) else float(f"{value:.{digits}g}")
