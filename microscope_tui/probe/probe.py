"""The probe: it watches the routers of a model while other code trains it, and writes the log.

The hooks of ``forward_hooks.py`` count; a step becomes a line here: one sum over ranks, one copy to
the host, one record. After ``attach`` nothing raises. A process whose probe has failed still takes
part in every sum, and its lines are marked as incomplete.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from msgspec import UNSET
from torch import Tensor, nn

from microscope_tui.probe.forward_hooks import ForwardHooks
from microscope_tui.probe.header import AuxLoss, check_settings, describe, profile, setting_of
from microscope_tui.probe.judge import Alert
from microscope_tui.probe.losses import grad_squares
from microscope_tui.probe.ranks import Ranks
from microscope_tui.probe.recorder import RunRecorder, TrainingLog
from microscope_tui.probe.sites import Site
from microscope_tui.probe.step_sums import EXTRA, Layout, Row, StepSums, shortened, step_record
from microscope_tui.probe.still import Looks

_logger = logging.getLogger(__name__)
claimed: set[Path] = set()
"""Run folders that a probe of this process writes to: closed to others until it is detached."""


class Probe:
    """What ``attach`` returns: call ``step`` after every optimizer step."""

    def __init__(
        self,
        model: nn.Module,
        sites: list[Site],
        ranks: Ranks,
        folder: Path,
        *,
        mode: str,
        every: int,
        saliency: bool,
        on_alert: Callable[[Alert], Any] | None,
        planned_steps: int | None,
        trainer_args: Any,
        part: str | None = None,
    ) -> None:
        """The first step follows with ``begin``."""
        self.sites, self.ranks = sites, ranks
        self.stops = self.wants_stop = False
        """``stops``: the training should end, on all ranks. Rank 0 requests it by ``wants_stop``;
        the sum of the next logged step passes it on."""
        self._model, self._folder, self._mode, self._every = model, folder, mode, every
        self._saliency, self._on_alert, self._trainer_args = saliency, on_alert, trainer_args
        self._planned_steps, self._part = planned_steps, part
        self.layout: Layout | None = None
        """The rows of the log, after the first logged step."""
        self._log: TrainingLog | None = None
        self._squares: Tensor | None = None
        self._warned: set[str] = set()
        self.hooks = ForwardHooks(model, sites, mode, saliency, ranks.size > 1)
        self._looks = Looks(self.hooks, ranks)

    def begin(self, step: int, resumed: bool, judgement: bytes | None) -> None:
        """Make ``step`` the next one, before any is logged.

        If ``resumed``, the log has earlier steps; ``judgement``: state of the judge after them.
        """
        self._step, self._resumed = step - 1, resumed or step > 1
        self._judgement = judgement
        self._tick = time.perf_counter()
        self._next()

    def check_settings(self, warn: bool) -> None:
        """On rank 0, log what is trained, and ``warn`` about wrong settings."""
        if self.ranks.rank:
            return
        try:
            text, alerts = check_settings(self._model, self.sites, self._mode, self._trainer_args)
            if self._mode == "train":
                _logger.info("%s", text)
            for alert in alerts if warn else ():
                self._warned.add(setting_of(alert))
                _report(replace(alert, verdict=setting_of(alert)), "attach")
        except Exception as error:
            _logger.warning("the settings of the model could not be checked: %r", error)

    def step(
        self,
        loss: Any = None,
        *,
        losses: Mapping[str, Any] | None = None,
        step: int | None = None,
        **scalars: Any,
    ) -> None:
        """Log the optimizer step that is just completed; call it on every rank, every step.

        Args:
            loss: Next-token cross-entropy of this rank in nats; the log holds the mean over ranks.
            losses: Other loss terms, unweighted, by name.
            step: Its number, if it is not the next one.
            scalars: Other numbers for the line, for example ``learning_rate`` (or ``lr``).
        """
        if "lr" in scalars:
            scalars.setdefault("learning_rate", scalars.pop("lr"))
        self._step = self._step + 1 if step is None else int(step)
        due, self.hooks.on = self.hooks.on, False
        if due:
            self._record(loss, losses, scalars)
        self._next()

    def read_gradients(self) -> None:
        """For a trainer that clears the gradients before it calls ``step``."""
        if self.hooks.on:
            self._looks.read()
            self._squares = self.hooks.attempt(grad_squares, self.sites, self.ranks)

    def event(self, event: str, values: Mapping[str, Any], step: int | None = None) -> None:
        """Write an event of the run: ``eval``, ``checkpoint`` or your own."""
        if self._log is not None:
            self._log.event(self._step if step is None else step, event, values)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: a resumed run is judged as if never stopped."""
        judgement = self._judgement if self._log is None else self._log.judgement()
        if self._log is not None:
            self._log.sync()
        return {"step": self._step, "judgement": judgement}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``, before any step is logged."""
        if self._log is not None:
            raise RuntimeError("load_state_dict after steps were logged: call it after attach")
        self.begin(int(state["step"]) + 1, self._resumed, state.get("judgement"))

    def detach(self, reason: str = "finished") -> None:
        """Remove the hooks, which leaves the model as it was, and close the log.

        ``reason``: see ``RunRecorder.close``.
        """
        self.hooks.detach()
        claimed.discard(self._folder)
        if self._log is not None:
            self._log.end(self._step, reason)
            self._log = None

    def verdict(self) -> str:
        """The verdict so far, on a few lines; empty without one."""
        return "" if self._log is None else self._log.verdict()

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.detach("finished" if kind is None else "failed")

    def _next(self) -> None:
        self._squares = None
        self.hooks.reset(on=(self._step + 1) % self._every == 0)
        self._looks.begin(self.hooks.on)

    def _record(self, loss: Any, losses: Any, scalars: Mapping[str, Any]) -> None:
        """The sums over ranks are made even if everything else fails."""
        hooks, ranks, looks = self.hooks, self.ranks, self._looks
        looks.count(scalars.get("learning_rate"))
        if self.layout is None:
            self.layout = Layout.agreed(self.sites, hooks.calls.seen, ranks)
        layout = self.layout
        vector = hooks.attempt(self._vector, layout, loss)
        if vector is None:  # it still takes part in the sum
            extra = torch.zeros(len(EXTRA) + len(layout.rows) + looks.size, dtype=torch.float64)
            extra[0] = 1.0
            vector = layout.vector((), extra, ranks.rank, ranks.size)
        vector = ranks.sum(vector)
        biases = hooks.attempt(lambda: [self.sites[row.place].bias() for row in layout.rows])
        sums: StepSums | None = hooks.attempt(layout.read, vector, ranks.size, biases)
        if sums is None:
            return
        self.stops = self.stops or sums.extra[EXTRA.index("stop")] > 0
        if ranks.rank:
            self._log = self._log or TrainingLog(None)
            return
        scalars = {**self._cost(sums), **scalars}
        record = hooks.attempt(step_record, sums, layout.rows, self._saliency, losses, scalars)
        if record is None:
            return
        if not sums.extra[0]:
            looked = sums.extra[len(EXTRA) + len(layout.rows) :]
            found = looks.attempt(looks.conclude, looked, layout.rows, sums.counts)
            record["router"] |= found or {}
        self._warn_incomplete(sums, layout.rows)
        self._write(layout, record | {"step": self._step})

    def _vector(self, layout: Layout, loss: Any) -> Tensor:
        """What this rank adds to the step; only its state if it does not count."""
        hooks, ranks = self.hooks, self.ranks
        counts = ranks.counts and not hooks.problem
        parts = list(hooks.calls.parts(layout.num_experts))
        device = parts[0][1].device if parts else torch.device("cpu")
        extra = torch.zeros(len(EXTRA), dtype=torch.float64, device=device)
        extra[0] = float(bool(hooks.problem))
        extra[1] = float(hooks.passes if counts else 0)
        extra[2] = float(self.wants_stop)
        if counts and hooks.losses is not None:
            extra[3:7] = hooks.losses.read(device)
        if counts and loss is not None:
            loss = loss.detach() if isinstance(loss, Tensor) else torch.tensor(float(loss))
            extra[3], extra[4] = loss.double().mean(), 1.0
        if self._squares is None:
            self._squares = grad_squares(self.sites, ranks)
        places = torch.tensor([row.place for row in layout.rows], device=device)
        self._looks.read()
        looked = self._looks.vector(counts, device)
        extra = torch.cat([extra, self._squares.to(device)[places], looked])
        return layout.vector(parts if counts else (), extra, ranks.rank, ranks.size)

    def _cost(self, sums: StepSums) -> dict[str, float | None]:
        now = time.perf_counter()
        seconds, self._tick = (now - self._tick) / self._every, now
        return {
            "tokens_per_s": max(sums.tokens, default=0) / seconds if seconds > 0 else None,
            "step_time_s": seconds,
            "memory_bytes": _memory_bytes(),
        }

    def _write(self, layout: Layout, record: dict[str, Any]) -> None:
        if self._log is None:
            self._log = TrainingLog(self.hooks.attempt(self._open, layout))
        self._log.step(record)
        for alert in self._log.alerts():
            if alert.rule != "LINT" or setting_of(alert) not in self._warned:
                _report(alert, f"step {alert.step}")
            if self._on_alert is not None:
                try:
                    self._on_alert(alert)
                except Exception:
                    _logger.exception("on_alert raised; training continues")
        if self.wants_stop and self.ranks.size == 1:
            self.stops = True

    def _warn_incomplete(self, sums: StepSums, rows: Sequence[Row]) -> None:
        failed, passes = sums.extra[:2]
        if failed:  # reported when it happened
            return
        pairs = zip(sums.tokens, rows, strict=True)
        lacking = [row.name for tokens, row in pairs if not tokens and not row.optional]
        if not passes and self._model.training != (self._mode == "train"):
            self._once(
                f"no forward pass was counted; call model.{self._mode}() before: passes in the "
                "other mode are not counted"
            )
        elif not passes:
            self._once(
                "no forward pass was counted; call the model that was given to attach; a model "
                "that was compiled and run before attach, is replayed as a CUDA graph, or is a "
                "copy, is not seen"
            )
        elif not any(sums.tokens):
            self._once(
                "the model ran and no router was seen; a kernel that replaces the whole MoE "
                "layer, or code compiled before attach, hides them"
            )
        elif lacking:
            self._once(
                "%s not seen; where layers were replaced after attach, detach and attach again",
                shortened(lacking),
            )
        if self.hooks.outside:
            self._once(
                "routers run outside the forward of the model that was given to attach, and are "
                "not counted: attach to the module that the training calls"
            )

    def _once(self, text: str, *values: object) -> None:
        if text not in self._warned:
            self._warned.add(text)
            _logger.warning(f"step %d: {text}", self._step, *values)

    def _open(self, layout: Layout) -> RunRecorder:
        hooks = self.hooks
        aux = AuxLoss(self._trainer_args, hooks.asked, hooks.returned)
        described = describe(self._model, self.sites, layout.rows, hooks.passes, aux)
        if self._mode == "eval":
            del described["training"]
        return RunRecorder(
            self._folder,
            run=(self._folder.parent if self._part else self._folder).name,
            part=self._part or UNSET,
            planned_steps=self._planned_steps,
            resumed_at_step=self._step if self._resumed else None,
            profile="eval" if self._mode == "eval" else profile(self._model),
            writer="microscope_tui.probe",
            world_size=self.ranks.size,
            judgement=self._judgement,
            **described,
        )


def _report(alert: Alert, when: str) -> None:
    level = logging.INFO if alert.severity == "info" else logging.WARNING
    _logger.log(level, "%s: %s: %s %s", when, alert, alert.why, alert.next)


def _memory_bytes() -> int:
    """Peak memory of the device, else of the process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
