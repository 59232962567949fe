"""The probe: it watches the routers of a model while other code trains it, and writes the log.

The hooks of ``forward_hooks.py`` count; a step becomes a line here: one sum over ranks, which is
read when the next step is logged, one copy to the host, one record. The sum of the first logged
step starts with that of the second: until then the ranks do not know which rows the log has. After
``attach`` nothing raises. A process whose probe has failed still takes part in every sum, and its
lines are marked as incomplete.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary, finalize

import torch
from msgspec import UNSET, UnsetType
from torch import Tensor, nn

from microscope_tui.probe.alignment import Alignment, OptimizerSteps, alignment_of, place_of
from microscope_tui.probe.forward_hooks import ForwardHooks
from microscope_tui.probe.header import AuxLoss, check_settings, describe, profile, setting_of
from microscope_tui.probe.judge import Alert
from microscope_tui.probe.log_lock import unlock_log
from microscope_tui.probe.losses import Name, Share, Shares, grad_squares
from microscope_tui.probe.ranks import EXIT_S, Ranks
from microscope_tui.probe.recorder import RunRecorder, TrainingLog, plain
from microscope_tui.probe.sites import Site
from microscope_tui.probe.stages import check_replicas, check_sums, expert_ranks, mark_of, marks_of
from microscope_tui.probe.step_sums import (
    EXTRA,
    Key,
    Layout,
    Row,
    StepSums,
    memory_bytes,
    rows_of,
    shortened,
    step_record,
)
from microscope_tui.probe.still import Looks
from microscope_tui.runlog import LOG_NAME, plural

_logger = logging.getLogger(__name__)
_CPU = torch.device("cpu")
_COMPARED = (2, 3)
"""Logged steps that compare replicas again: before the rate of a warm-up from 0 has moved them,
stages that are built with one seed are equal."""
claimed: WeakValueDictionary[Path, Probe] = WeakValueDictionary()
"""The probe that writes to a run folder, which is closed to others until it is detached."""


class _Share(NamedTuple):
    """What this rank adds to the sum of a step, for routers; rows follow when they are agreed."""

    extra: Tensor
    """See ``EXTRA``."""
    biases_SE: Tensor
    """From the first rank that holds the router; NaN without one."""
    marks: Tensor
    """See ``Probe._marks``."""
    place: Tensor
    """See ``place_of``."""
    squares_S: Tensor
    """Squared gradient norms."""
    looked: Tensor
    """See ``Looks.vector``."""
    parts: Sequence[tuple[Key, Tensor, Tensor]] = ()
    """See ``Calls.parts``; none if this rank does not count."""
    numbers: Mapping[Name, Share] = {}
    """See ``Shares``."""


class _Line(NamedTuple):
    """A logged step until its sum is read."""

    number: int
    """Of the logged steps of this probe."""
    share: _Share
    losses: dict[str, Any]
    scalars: dict[str, Any]


class Probe:
    """What ``attach`` returns: call ``step`` after every optimizer step."""

    def __init__(
        self,
        modules: list[nn.Module],
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
        self.folder, self._mode, self._every = folder, mode, every
        self._saliency, self._on_alert, self._trainer_args = saliency, on_alert, trainer_args
        self._planned_steps, self._part = planned_steps, part
        self.layout: Layout | None = None
        """The rows of the log, after the first logged step."""
        self._log: TrainingLog | None = None
        self._early: deque[tuple[int, str, Mapping[str, Any]]] = deque(maxlen=1000)
        """Events before the log is open; the oldest are dropped."""
        self._squares: Tensor | None = None
        self._warned: set[str] = set()
        self._passes = 0
        """Of a step, for the header."""
        self._unpadded: list[str] = []
        """Routers in other stages than those that show the padding."""
        self._E = max((site.num_experts for site in sites), default=0)
        self._is_whole = all(site.here for site in sites)
        self._kept: list[_Line] = []
        """The first logged step, until the ranks agree on the rows."""
        self._sums: list[tuple[Tensor, Any, _Line]] = []
        """Of the last logged steps, until they are read; see ``Ranks.start``."""
        self._alignment: Alignment | None = None
        """Of the latest sum."""
        self._stop_requested = False
        self._owner = os.getpid()
        self._logged = 0
        """The latest step that is summed."""
        self._number = 0
        """Logged steps of this probe."""
        self.is_over = False
        """The ranks are not together any more: nothing is counted or summed."""
        self.hooks, self._model = ForwardHooks(modules, sites, mode, saliency, ranks), modules[0]
        self._looks = Looks(self.hooks, ranks)
        self._shares = Shares()
        self._optimizer = OptimizerSteps(sites)
        claimed[folder] = self
        finalize(self, self._optimizer.forget)
        finalize(self, self.hooks.detach)  # it may be forgotten by an interrupted training
        self._unlock = finalize(self, unlock_log, folder / LOG_NAME)

    def begin(self, step: int, resumed: bool, judgement: bytes | None) -> None:
        """Make ``step`` the next one, before any is logged.

        Args:
            step: From 1.
            resumed: The log, or the run before it, has earlier steps.
            judgement: State of the judge after them; ``None`` judges from here on.
        """
        self._step, self._resumed = step - 1, resumed or step > 1
        self._begin = self._step
        self._numbered = False
        """Whether the trainer numbers its steps."""
        self._timed_step = self._step
        self._judgement = judgement
        self._tick = time.perf_counter()
        self._next()

    def check_settings(self, warn: bool) -> None:
        """On rank 0, log what is trained, and ``warn`` about wrong settings."""
        if self.ranks.rank:
            return
        try:
            text, alerts = check_settings(self._model, self.sites, self._mode, self._trainer_args)
            if self._mode == "train" and self._is_whole:
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
            losses: Other loss terms, unweighted, a mapping by name; those of rank 0 are logged.
            step: Its number, if it is not the next one.
            scalars: Other numbers for the line, for example ``learning_rate`` (or ``lr``), those of
                rank 0; ``router``: a mapping of lists with one number for each row of the log.

        Numbers may be tensors. Of a DTensor whose parts are on several ranks, as a norm under FSDP2
        may be, the log holds the whole number. What is not one number is left out, with a warning.
        """
        if "lr" in scalars:
            scalars.setdefault("learning_rate", scalars.pop("lr"))
        self._step = self._step + 1 if step is None else int(step)
        self._numbered = step is not None
        due, self.hooks.on = self.hooks.on, False
        if due:
            self._shares.own = {}
            if isinstance(loss, Tensor) and loss.dim() and not hasattr(loss, "placements"):
                loss = loss.detach().double().mean()  # of each token or micro-batch
            router = self._mapping("router", scalars.pop("router", None))
            router = {name: _now(value) for name, value in router.items()}
            losses = self._numbers(self._mapping("losses", losses), "losses")
            numbers = self._numbers({**scalars, "loss": loss})
            self._record(numbers.pop("loss", None), losses, numbers | {"router": router})
        self._next()

    def read_gradients(self) -> None:
        """Read the gradients now; for a trainer that clears them before it calls ``step``."""
        if self.hooks.on:
            self._looks.read()
            self._squares = self.hooks.attempt(grad_squares, self.sites)

    def mask(self, mask: Tensor) -> None:
        """For a stage of a pipeline whose inputs do not show padding: the real tokens ``[B, S]`` of
        all micro-batches of the step under a schedule of torch, called before it; else of the next
        forward passes."""
        self.hooks.mask = mask

    def event(self, event: str, values: Mapping[str, Any], step: int | None = None) -> None:
        """Write an event of the run: ``eval``, ``checkpoint`` or your own.

        Args:
            event: Its name.
            values: Numbers, or tensors of one number.
            step: ``None``: the last one that was logged.
        """
        self._read_sums()
        values = {n: _now(v) for n, v in self._mapping("values", values).items()}
        found = (self._step if step is None else step, event, values)
        if self._log is None:
            self._early.append(found)
        else:
            self._log.event(*found)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs, so that a resumed run is judged as if it had never stopped.

        Also syncs the log to disk, so that it has the steps of the checkpoint.
        """
        self._read_sums()
        judgement = self._judgement if self._log is None else self._log.judgement()
        if self._log is not None:
            self._log.sync()
        return {"step": self._step, "judgement": judgement}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``; call it before the first step.

        ``RuntimeError``: steps have been logged already.
        """
        if self._log is not None or self._kept:
            raise RuntimeError("load_state_dict after steps were logged: call it after attach")
        self.begin(int(state["step"]) + 1, self._resumed, state.get("judgement"))

    def detach(self, reason: str = "finished") -> None:
        """Remove the hooks, which leaves the model as it was, and close the log.

        ``reason``: how the run ended: ``finished``, ``stopped``, ``collapse``, ``signal`` or
        ``failed``.
        """
        self.hooks.detach()
        self._optimizer.forget()
        self._start()
        self._read_sums()
        was_over = self.is_over
        self.is_over = True
        self.hooks.on = False
        claimed.pop(self.folder, None)
        if self._log is not None:
            self._log.end(self._step, reason)
            self._log = None
        self._unlock()
        if not was_over:
            self.ranks.give_back()

    def read_last_sum(self) -> None:
        """At the end of a program without ``detach``: the last step is in the log, too."""
        # After an exception other ranks may never come; in a fork they never do.
        is_alone = hasattr(sys, "last_value") or os.getpid() != self._owner
        if (self._sums or self._kept) and not is_alone:
            self.ranks.limit_s = EXIT_S
            self._start()
            self.state_dict()

    def __del__(self) -> None:
        """Forgotten, for example at the end of the function that has trained."""
        self.read_last_sum()

    def verdict(self) -> str:
        """The verdict so far, on a few lines; empty without one."""
        self._read_sums()
        return self._log.verdict() if self._log else ""

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.detach("finished" if kind is None else "failed")

    def _next(self) -> None:
        self._squares = None
        self.hooks.reset(on=(self._step + 1) % self._every == 0 and not self.is_over)
        self._looks.begin(self.hooks.on)

    def _record(self, loss: Any, losses: dict[str, Any], scalars: dict[str, Any]) -> None:
        """The sums over ranks are made even if everything else fails."""
        hooks, looks = self.hooks, self._looks
        self._read_sums()
        self.stops = self.stops or self._stop_requested
        self._realign()
        hooks.attempt(hooks.end)
        looks.count(self._number + 1, scalars.get("learning_rate"))
        self._start()
        is_first = self.layout is None and not self.is_over
        if is_first:
            self._together(self._post)
        if self.is_over:
            return
        self._number += 1
        share = hooks.attempt(self._share, loss) or self._no_share()
        now = time.perf_counter()
        seconds = (now - self._tick) / max(1, self._step - self._timed_step)
        self._tick, self._timed_step = now, self._step
        own = {"step": self._step, "step_time_s": seconds, "memory_bytes": memory_bytes()}
        self._kept.append(_Line(self._number, share, losses, own | scalars))
        if not is_first or self.ranks.size == 1:
            self._start()
        if self.ranks.size == 1:
            self._read_sums()

    def _together(self, call: Callable[..., Any], *args: Any) -> Any:
        """What ``call`` returns, in which all ranks take part; if it fails, the probe ends."""
        try:
            return call(*args)
        except Exception as error:
            self.is_over = True
            self.hooks.fail(error)

    def _post(self) -> None:
        """Send the other ranks what this one saw in the first logged step."""
        own = self.hooks.attempt(self._seen) or [(None, 0, 0, False)] * len(self.sites)
        looks = self._looks.plan() if self.hooks.trains else ([], [])
        self._passes = self.hooks.passes // len(self.hooks.modules)
        self.ranks.post((own, looks, self._shares.places()), self._step)

    def _agree(self) -> None:
        """On the rows of the log, by what all ranks saw in the first logged step."""
        sites = self.sites
        everyone, looks, numbers = zip(*self.ranks.collect(), strict=True)
        self._shares.agree(numbers)
        by_site = [[*zip(*seen, strict=True)] for seen in zip(*everyone, strict=True)]
        check_replicas(sites, [marks for marks, *_ in by_site])
        passes, top_k, padded = ([max(seen[n]) for seen in by_site] for n in (1, 2, 3))
        self._looks.agree(looks)
        self.layout = Layout(rows_of(sites, passes, top_k))
        if any(padded) and len(sites[0].holders) < self.ranks.size:
            pairs = zip(sites, padded, strict=True)
            self._unpadded = [site.name for site, own in pairs if site.sees_text and not own]

    def _start(self) -> None:
        """Start the sums of the kept steps, once the rows are agreed on."""
        kept, self._kept = self._kept, []
        if kept and self.layout is None:
            self._together(self._agree)
        for line in kept:
            if self.is_over or self.layout is None:
                return
            vector = self.hooks.attempt(self._vector, self.layout, line.share, line.number)
            if vector is None:  # it still takes part in the sum
                vector = self._vector(self.layout, self._no_share(), line.number)
            work = self._together(self.ranks.start, vector, line.scalars["step"])
            self._sums.append((vector, work, line))

    def _seen(self) -> list[tuple[Any, int, int, bool]]:
        found: list[tuple[Any, int, int, bool]] = []
        for place, site in enumerate(self.sites):
            calls = {n: k for (at, n), k in self.hooks.calls.seen.items() if at == place}
            mark = mark_of(site) if self.ranks.size > 1 else None
            top_k = site.top_k or max(calls.values(), default=0)
            found.append((mark, max(calls, default=-1) + 1, top_k, place in self.hooks.padded))
        return found

    def _biases(self, device: torch.device) -> Tensor:
        """The bias of every router, from the first rank that holds it; NaN without one."""
        shape = len(self.sites), self._E
        found_SE = torch.zeros(shape, dtype=torch.float64, device=device)
        for site, found_E in zip(self.sites, found_SE, strict=True):
            if site.holders[0] == self.ranks.rank:
                own = site.bias()
                found_E[: site.num_experts] = torch.nan if own is None else own
        return found_SE

    def _marks(self, device: torch.device) -> Tensor:
        """See ``marks_of``; zeros in a step in which replicas are not compared."""
        found: Tensor | None = None
        if self._number in _COMPARED and self.ranks.size > 1:
            found = self.hooks.attempt(marks_of, self.sites, device)
        if found is None:
            found = torch.zeros(3 * len(self.sites), dtype=torch.float64, device=device)
        return found

    def _read_sums(self) -> None:
        """Read the sums of the last logged steps; on rank 0, write their lines."""
        sums, self._sums = self._sums, []
        for vector, work, line in sums:
            self._together(self.ranks.finish, work)
            if self.is_over or self.layout is None:
                return
            place = len(line.share.place)
            vector, marks, places = vector.tensor_split(
                [len(vector) - place - 3 * len(self.sites), len(vector) - place]
            )
            found = alignment_of(places.tolist(), self._begin)
            if line.number in _COMPARED and not found.text():
                self._together(check_sums, self.sites, marks)
            if self.is_over:
                return
            self._alignment = found
            self._read(self.layout, vector, line, found)

    def _realign(self) -> None:
        """Take part in the sums that this rank has missed, with nothing; correct its counter."""
        found, self._alignment = self._alignment, None
        if found is None:
            return
        before = self._step // self._every
        self._step += found.corrections.get(self.ranks.rank, 0)
        missed = self._step // self._every - before
        if self._numbered:
            missed = found.ahead(self.ranks.rank) // self._every
        for number in range(missed, 0, -1):
            self._number += 1
            scalars = {"step": self._step - number * self._every, "router": {}}
            share = self._no_share(lost=False, is_absent=True)
            self._kept.append(_Line(self._number, share, {}, scalars))

    def _read(self, layout: Layout, vector: Tensor, line: _Line, alignment: Alignment) -> None:
        hooks = self.hooks
        scalars = line.scalars
        if self.ranks.rank:
            self._stop_requested = layout.is_stopped(vector, self.ranks.size)
            self._log = self._log or TrainingLog(None)
            return
        sums: StepSums | None = hooks.attempt(self._sums_of, layout, vector)
        if sums is None:
            return
        self._logged = scalars["step"]
        seconds = scalars.get("step_time_s", 0.0)
        extra = sums.named
        lacking = alignment.text()
        self._stop_requested = extra["stop"] > 0
        rate = max(sums.tokens, default=0) / seconds if seconds > 0 else None
        scalars = {"tokens_per_s": rate, **scalars}
        own = sums.extra[len(EXTRA) + len(layout.rows) :]
        looked = own[self._shares.size :]
        record = hooks.attempt(self._line, layout, sums, own, line.losses, scalars)
        if record is None:
            return
        if not (extra["failed"] or extra["unlooked"] or lacking):
            looks = self._looks
            found = looks.attempt(looks.conclude, looked, layout.rows, sums.counts)
            record["router"] |= found or {}
        self._warn_incomplete(sums, layout.rows)
        if lacking:
            record["incomplete"] = "; ".join(filter(None, [record.get("incomplete"), lacking]))
        for rank in alignment.corrections:
            self._once(
                f"rank {rank} has not called probe.step once for every step of its optimizer: the "
                "lines of these steps are incomplete; call it on every rank, every step"
            )
        self._write(layout, record)

    def _line(
        self,
        layout: Layout,
        sums: StepSums,
        slots: Sequence[float],
        losses: dict[str, Any],
        scalars: dict[str, Any],
    ) -> dict[str, Any]:
        """The record of a step; ``slots`` begins with the sum of ``Shares.vector``."""
        summed = self._shares.read(slots[: self._shares.size])
        scalars = scalars | {name[0]: one for name, one in summed.items() if len(name) == 1}
        losses = losses | {name[1]: one for name, one in summed.items() if len(name) == 2}
        scalars["router"] = self._rows_only(scalars["router"], layout)
        whole_loss = scalars.pop("loss", None)
        record = step_record(sums, layout.rows, self._saliency, losses, scalars)
        if whole_loss is not None:  # each rank had a part of it, instead of a loss of its own
            record["loss"] = whole_loss
        return record

    def _sums_of(self, layout: Layout, vector: Tensor) -> StepSums:
        rows, E = layout.rows, layout.num_experts
        summed, biases = vector.tensor_split([-len(rows) * E])
        pairs = zip(rows, biases.view(-1, E), strict=True)
        own = [bias_E[: row.num_experts] for row, bias_E in pairs]
        sums = layout.read(summed, self.ranks.size, own)
        for bias in sums.biases:
            if all(map(math.isnan, bias)):
                bias.clear()
        return sums

    def _share(self, loss: Any) -> _Share:
        """Of the step; only the state of this rank if it does not count."""
        hooks, ranks = self.hooks, self.ranks
        lost = bool(hooks.problem) or hooks.spoiled
        counts = ranks.counts(hooks.sees_part) and not lost
        parts = list(hooks.calls.parts(self._E))
        device = next((flat_N.device for _, flat_N, _ in parts), _CPU)
        share = self._no_share(device, lost)
        extra = share.extra
        extra[2] = float(self.wants_stop)
        if counts:
            extra[1] = float(hooks.passes)
            if hooks.losses is not None:
                extra[3:7] = hooks.losses.read(device)
            if loss is not None:
                extra[3], extra[4] = loss, 1.0
            share = share._replace(parts=parts)
        if self._squares is None:
            self._squares = grad_squares(self.sites)
        self._looks.read()
        looked = self._looks.vector(counts, device)
        squares_S = self._squares.to(device)
        return share._replace(squares_S=squares_S, looked=looked, numbers=self._shares.own)

    def _no_share(
        self, device: torch.device = _CPU, lost: bool = True, is_absent: bool = False
    ) -> _Share:
        """Of a rank whose probe has ``lost`` the step, or which ``is_absent``: it takes part in the
        sum."""
        extra = torch.zeros(len(EXTRA), dtype=torch.float64, device=device)
        extra[0] = float(lost)
        sent = (0, 0, 0)
        if not is_absent:
            sent = self._optimizer.sent(self._step, self._numbered)
        return _Share(
            extra,
            self._biases(device),
            self._marks(device),
            place_of(self.ranks.rank, self.ranks.size, sent, device),
            extra.new_zeros(len(self.sites)),
            extra.new_zeros(0),
        )

    def _vector(self, layout: Layout, share: _Share, number: int) -> Tensor:
        extra, biases_SE, marks, place, squares_S, looked, parts, numbers = share
        places = torch.tensor([row.place for row in layout.rows], device=extra.device)
        listed = {(row.place, row.number) for row in layout.rows}
        extra[EXTRA.index("unlisted")] = len({key for key, *_ in parts} - listed)
        for name in self._shares.strangers(numbers):
            where = ".".join(name)
            self._once(f"{where} was not split like this in the first logged step: it is left out")
        if len(looked) != self._looks.size_of(number):  # its steps were counted otherwise
            looked = extra.new_zeros(self._looks.size_of(number))
            extra[EXTRA.index("unlooked")] = 1.0
        slots = self._shares.vector(numbers, extra.device)
        biases = biases_SE[places].flatten()
        extra = torch.cat([extra, squares_S[places], slots, looked, biases])
        vector = layout.vector(parts, extra, self.ranks.rank, self.ranks.size)
        return torch.cat([vector, marks, place])

    def _write(self, layout: Layout, record: dict[str, Any]) -> None:
        if self._log is None:
            self._log = TrainingLog(self.hooks.attempt(self._open, layout, record["loss"]))
            for event in self._early:
                self._log.event(*event)
            self._early.clear()
            atexit.unregister(_read_last_sums)  # again: it comes before the log is closed
            atexit.register(_read_last_sums)
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
        """Warn about what the step lacks, once each; a failure was reported when it happened."""
        extra = sums.named
        if extra["failed"]:  # reported when it happened
            return
        pairs = zip(sums.tokens, rows, strict=True)
        lacking = [row.name for tokens, row in pairs if not tokens and not row.optional]
        if not extra["passes"]:
            why = (
                "call the model that was given to attach; a model that was compiled and run before "
                "attach, is replayed as a CUDA graph, or is a copy, is not seen"
            )
            if self._model.training != self.hooks.trains:
                why = f"call model.{self._mode}() before: passes in the other mode are not counted"
            self._once(f"no forward pass was counted; {why}")
        elif not any(sums.tokens):
            self._once(
                "the model ran and no router was seen; a kernel that replaces the whole MoE "
                "layer, or code compiled before attach, hides them"
            )
        elif lacking:
            self._once(
                "%s not seen; where layers were replaced after attach, detach and attach again; "
                "of a layer that runs a varying number of times only some passes are logged",
                shortened(lacking),
            )
        if extra["unlisted"]:
            self._once("layers run more often than in the first logged step: not all is logged")
        if self.hooks.outside:
            self._once(
                "routers run outside the forward of the model that was given to attach, and are "
                "not counted: attach to the module that the training calls"
            )

    def _mapping(self, name: str, value: Any) -> Mapping[str, Any]:
        if value is None or isinstance(value, Mapping):
            return value or {}
        self._once("%s is a %s and left out: pass a mapping", name, type(value).__name__)
        return {}

    def _numbers(self, values: Mapping[str, Any], *place: str) -> dict[str, Any]:
        """Those that are one number each; of what is split over ranks, this rank's share."""
        found = {}
        for name, value in values.items():
            if value is None:
                continue
            try:
                number = self._shares.take((*place, name), value)
            except Exception as error:  # it may be anything
                self._once(f"{'.'.join((*place, name))} is {error}, not a number: left out")
                continue
            if number is not None:
                found[name] = number
        return found

    def _rows_only(self, readings: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
        """The readings with one number for each row of the log."""
        found = {}
        for name, value in readings.items():
            numbers = _plain_or_text(value)
            if not isinstance(numbers, list):
                numbers = [numbers]
            sound = all(type(one) in (int, float, type(None)) for one in numbers)
            if sound and len(numbers) == len(layout.rows):
                found[name] = numbers
            elif value is not None:
                self._once(
                    f"router[{name!r}] is {numbers!r:.60} and left out: pass a list of "
                    f"{plural(len(layout.rows), 'number')}, one for each router"
                )
        return found

    def _once(self, text: str, *values: object) -> None:
        if text not in self._warned:
            self._warned.add(text)
            _logger.warning(f"step %d: {text}", self._logged, *values)

    def _open(self, layout: Layout, loss: float | None) -> RunRecorder:
        hooks = self.hooks
        loss_kind: str | UnsetType = UNSET
        if loss is not None:
            loss_kind = "given" if hooks.losses is None else "outputs"
        aux = AuxLoss(self._trainer_args, hooks.asked, hooks.returned)
        described = describe(self._model, self.sites, layout.rows, self._passes, aux)
        if names := self._unpadded:
            described["config"]["padding_counted"] = names
            self._once(
                "padding counts in %s: their stages do not see it; pass it to probe.mask",
                shortened(names),
            )
        kind = "eval"
        if self.hooks.trains:
            kind = profile(self.hooks.model)
        if not (self.hooks.trains and self._is_whole):
            del described["training"]
        if not self._is_whole:  # these are of one stage
            del described["model"]["parameters"]
        folder = self.folder.parent if self._part else self.folder
        return RunRecorder(
            self.folder,
            run=folder.name,
            part=self._part or UNSET,
            planned_steps=self._planned_steps,
            resumed_at_step=self._logged if self._resumed else None,
            profile=kind,
            loss_kind=loss_kind,
            writer="microscope_tui.probe",
            world_size=self.ranks.size,
            expert_parallel_size=expert_ranks(self.sites),
            judgement=self._judgement,
            **described,
        )


def _read_last_sums() -> None:
    for probe in list(claimed.values()):
        probe.read_last_sum()


def _now(value: Any) -> Any:
    """The trainer may change its tensor before the line is written."""
    return value.detach().clone() if isinstance(value, Tensor) else value


def _plain_or_text(value: Any) -> Any:
    try:
        return plain(value)
    except Exception as error:  # it may be anything, as a DTensor
        return f"{type(value).__name__}: {error}"


def _report(alert: Alert, when: str) -> None:
    level = logging.INFO if alert.severity == "info" else logging.WARNING
    _logger.log(level, "%s: %s: %s %s", when, alert, alert.why, alert.next)


atexit.register(_read_last_sums)
