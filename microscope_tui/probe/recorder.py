"""``RunRecorder`` turns the numbers of a step into one line of the run log.

What follows from the counts is computed here, so that every writer of logs agrees with every
reader. The training thread checks, copies, summarises and judges a step (``judge.py``), so that
alerts do not depend on the disk; the thread of ``runlog/writer.py`` encodes matrices and writes.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from microscope_tui import measures
from microscope_tui.diagnosis import BadState
from microscope_tui.probe.judge import Alert, RunJudge
from microscope_tui.probe.log_lock import lock_log, unlock_log
from microscope_tui.runlog import (
    LOG_NAME,
    BackgroundLog,
    EventRecord,
    RunHeader,
    RunLogWriter,
    encode_record,
    rounded,
)
from microscope_tui.runlog.decode import counts_of
from microscope_tui.runlog.writer import MEANS, without_matrices

_logger = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")
_Counts = Sequence["array[int] | None"]
_BIAS_FORMAT = "%.4g"
_NEEDED = ("layers", "num_experts", "top_k")


class RunRecorder:
    """Writes one run's log, ``run_dir/metrics.jsonl``, and judges the run while it trains.

    Neither a failing disk nor a failing judge stops the training.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        *,
        model: Mapping[str, Any],
        run: str | None = None,
        part: str | UnsetType = UNSET,
        planned_steps: int | None = None,
        balance: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
        resumed_at_step: int | None = None,
        profile: str = "pretrain",
        loss_kind: str | UnsetType = UNSET,
        writer: str = "moe_model",
        counts_every: int = 1,
        world_size: int = 1,
        expert_parallel_size: int = 1,
        judge: bool = True,
        judgement: bytes | None = None,
    ) -> None:
        """Open the log and write its ``run`` record.

        Args:
            model: with ``layers``, ``num_experts`` and ``top_k`` (one number, or one per router).
            loss_kind: ``outputs`` or ``given`` (see the format), if not the cross-entropy.
            counts_every: the matrices (counts and bias of every expert) are in the lines of step 1
                and of every step that this number divides; the summaries are in every line.
            judge: run the diagnosis while the run trains, see ``alerts``.
            judgement: of ``judgement()`` after the step before ``resumed_at_step``, to continue.

        Raises:
            OSError: the folder cannot be written at all, or another process writes its log.
            ValueError: ``counts_every`` is less than 1, or ``model`` lacks one of the three keys.
        """
        if counts_every < 1:
            raise ValueError(f"counts_every is {counts_every}: choose 1 (every step) or more")
        described = _described(model)
        self._depths, *sizes = map(described.__getitem__, _NEEDED)
        self._num_experts, self._top_k = map(self._each, _NEEDED[1:], sizes)
        self._counts_every, self._left_out = counts_every, set[str]()
        self._path = Path(run_dir) / LOG_NAME
        self._log = self._open(resumed_at_step is not None)
        head = plain(RunHeader(
            run=run or Path(run_dir).resolve().name, time=time.time(), planned_steps=planned_steps,
            profile=profile, model=described, resumed_at_step=resumed_at_step, config=config or {},
            balance=balance or {}, versions=versions or {}, world_size=world_size,
            source={"writer": writer, "counts": "exact"}, expert_parallel_size=expert_parallel_size,
            training=training or UNSET, part=part, loss_kind=loss_kind,
        ).to_json())  # fmt: skip
        self._log.write(head)
        self._alerts: deque[Alert] = deque(maxlen=1000)  # older ones are dropped
        self._judge = self._new_judge(head, judgement) if judge else None

    def _open(self, resumed: bool) -> BackgroundLog:
        lock_log(self._path)
        if not resumed and self._path.exists() and self._path.stat().st_size:
            self._warn("holds a run, and this one follows: take another folder, or resumed_at_step")
        return BackgroundLog(RunLogWriter(self._path), finish=_finished)

    def record_step(
        self,
        *,
        step: int,
        loss: float | None,
        tokens: int | None,
        tokens_per_expert: Sequence[Sequence[int] | None],
        expert_bias: Sequence[Sequence[float]] | None = None,
        mean_weight: Sequence[Sequence[float | None]] | None = None,
        mean_output_norm: Sequence[Sequence[float | None]] | None = None,
        router: Mapping[str, Sequence[float | None]] | None = None,
        losses: Mapping[str, float] | None = None,
        incomplete: str | None = None,
        **scalars: float | None,
    ) -> list[float | None]:
        """Write one step and return the collapse index of every router.

        Numbers may be anything that converts to Python's; rows may be arrays.

        Args:
            step: optimizer steps completed, this one included; the first is 1.
            loss: next-token cross-entropy in nats, mean over the global batch; ``None`` if unknown.
            tokens: real tokens of the global batch; ``None`` if unknown.
            tokens_per_expert: selected pairs, a row per router; ``None`` if it was not counted.
            expert_bias: uncentred selection bias, one row per router.
            mean_weight: of every expert over its tokens; so is ``mean_output_norm``, unweighted.
            router: further per-router summaries by their name in the format (``entropy`` …).
            losses: other loss terms, unweighted.
            incomplete: what the line lacks, if it does not hold all of the step.
            scalars: ``learning_rate``, ``grad_norm``, ``tokens_per_s``, ``step_time_s``,
                ``memory_bytes`` …

        Raises:
            ValueError: not one entry per router, not one per expert in a row, or a count that is
                not a whole number.
        """
        step = int(step)
        counts = self._counts(tokens_per_expert)
        in_full = step == 1 or step % self._counts_every == 0
        biases: list[array[float]] = []
        if in_full and expert_bias is not None:
            biases = [array("d", row) for row in self._matrix("expert_bias", expert_bias)]
        head: dict[str, Any] = {"kind": "step", "step": step, "time": round(time.time(), 3)}
        head |= {"loss": plain(loss), "losses": plain(losses or {}), "tokens": plain(tokens)}
        head |= {name: self._number(name, plain(value)) for name, value in scalars.items()}
        if incomplete is not None:
            head["incomplete"] = incomplete
        head["router"] = self._router_object(router or {}, counts)
        # Judged first: with nothing to write yet, no other thread needs the interpreter.
        alerts = self._judge_step(head, counts if in_full else [], biases)
        # The matrices come last, so that a reader of a long history can skip them.
        means = zip(MEANS, (mean_weight, mean_output_norm), strict=True)
        matrices: dict[str, Any] = {
            name: self._matrix(name, rows) for name, rows in means if rows is not None
        }
        if in_full:
            head |= matrices | {"expert_bias": biases, "tokens_per_expert": counts}
        for record in (head, *alerts):
            self._log.write(record)
        return self._balances(counts)

    def record_event(self, *, step: int, event: str, **fields: Any) -> None:
        """Write an event with its further ``fields``; values that JSON cannot hold become text.

        The judge gets it too: advice may name a checkpoint.
        """
        head = {"kind": "event", "step": step, "time": round(time.time(), 3), "event": event}
        record = plain(head | fields)
        self._log.write(record)
        known = EventRecord(record["event"], step=record["step"])
        self.with_judge(lambda judge: judge.observe_event(known))

    def alerts(self) -> list[Alert]:
        """What began or grew worse since the last call, notes (``info``) included."""
        new = list(self._alerts)
        self._alerts.clear()
        return new

    def judgement(self) -> bytes | None:
        """The state of the judge for a checkpoint, without waiting alerts; ``None``: not judged."""
        return self.with_judge(RunJudge.save)

    def verdict(self) -> str:
        """One line per finding, ``healthy`` or ``not judged yet``: the verdict of ``check``."""
        nothing = "NO VERDICT: the run was not judged while it trained"
        return self.with_judge(RunJudge.verdict) or nothing

    def sync(self) -> bool:
        """Force the log to disk; call it around a checkpoint, so that both have the same steps.

        ``False`` if that fails or takes too long.
        """
        return self._log.sync()

    def close(self, *, step: int, reason: str) -> None:
        """Write the ``end`` event and all waiting records, sync and close, in a few seconds at
        most.

        ``reason``: ``finished``, ``stopped``, ``collapse``, ``signal`` or ``failed``.
        """
        self.record_event(step=step, event="end", reason=reason)
        self._log.close()
        unlock_log(self._path)

    def _new_judge(self, head: Mapping[str, Any], state: bytes | None) -> RunJudge | None:
        try:
            return RunJudge(encode_record(head), state)
        except BadState as error:
            self._warn(f"the saved state of the judge cannot be used, it starts anew: {error}")
            return self._new_judge(head, None)
        except Exception as error:  # any failure: the training matters more
            self._warn(f"the run is not judged while it trains: {error!r}")
            return None

    def _judge_step(
        self, head: Mapping[str, Any], counts: _Counts, biases: Sequence[array[float]]
    ) -> list[Mapping[str, Any]]:
        """Judge the step; return the events of its alerts, to be written right after its line."""

        def counted(index: int) -> list[int] | None:
            row = counts[index] if counts else None
            return None if row is None else row.tolist()

        def biased(index: int) -> list[float] | None:
            return [float(_BIAS_FORMAT % bias) for bias in biases[index]] if biases else None

        # The matrices are judged as they will be read, without encoding them first.
        def observe(judge: RunJudge) -> list[Alert]:
            return judge.observe(encode_record(head), counted, biased)

        new = self.with_judge(observe) or []
        self._alerts += new
        when = {"kind": "event", "step": head["step"], "time": head["time"], "event": "alert"}
        return [{**when, "values": alert.as_values()} for alert in new]

    def with_judge(self, call: Callable[[RunJudge], _Answer]) -> _Answer | None:
        """What ``call`` returns; ``None`` once the judge has raised: it is not called again."""
        if self._judge is None:
            return None
        try:
            return call(self._judge)
        except Exception as error:
            self._judge = None
            self._warn(f"the run is no longer judged: {error!r}")
            return None

    def _warn(self, what: str) -> None:
        _logger.warning("%s: %s; training continues", self._path, what)

    def _number(self, name: str, value: Any) -> float | None:
        """``value`` for the line; anything else than a number is left out, with one warning."""
        if type(value) in (int, float, type(None)):
            return rounded(value, 6)
        if name not in self._left_out:
            self._left_out.add(name)
            self._warn(f"{name} is {value!r:.60}, not a number: left out (router= takes lists)")
        return None

    def _router_object(self, readings: Mapping[str, Any], counts: _Counts) -> dict[str, Any]:
        read = {name: plain(self._rows(name, row)) for name, row in readings.items()}
        for name, derive in measures.DERIVED.items():
            read[name] = _of_counted(derive, counts)
        return {name: [rounded(one, 5) for one in row] for name, row in read.items()}

    def _balances(self, counts: _Counts) -> list[float | None]:
        """The collapse index of every router; ``None`` for one that was not counted."""
        balances = _of_counted(measures.balance, counts, self._top_k)
        return _of_counted(attrgetter("collapse_index"), balances)

    def _counts(self, rows: Any) -> list[array[int] | None]:
        """Compact; sums of whole numbers are often floats."""
        made: list[array[int] | None] = []
        for row, depth in zip(self._matrix("tokens_per_expert", rows), self._depths, strict=True):
            if row is None:
                made.append(None)
                continue
            counts = counts_of(row) or counts_of(plain(row))
            if counts is None:
                expert = [counts_of([count]) for count in plain(row)].index(None)
                raise ValueError(
                    f"tokens_per_expert has {plain(row[expert])!r} for expert {expert} of the "
                    f"router in layer {depth}: pass counts (whole numbers), not shares"
                )
            made.append(array("q", counts))
        return made

    def _matrix(self, name: str, rows: Any) -> list[Any]:
        """A list per router, so that the caller may reuse its own."""
        must_be = name == "tokens_per_expert"
        made = _of_counted(_listed, self._rows(name, rows))
        if not must_be:
            made = [row or [] for row in made]
        for row, depth, experts in zip(made, self._depths, self._num_experts, strict=True):
            if row is not None and len(row) != experts and (row or must_be):
                raise ValueError(
                    f"{name} has {len(row)} entries for the router in layer {depth}, which has "
                    f"{experts} experts: pass one per expert"
                )
        return made

    def _each(self, name: str, size: Any) -> list[int]:
        if isinstance(size, int):
            size = [size] * len(self._depths)
        return self._rows(name, size)

    def _rows(self, name: str, values: Any) -> list[Any]:
        rows = _listed(values)
        if len(rows) != len(self._depths):
            raise ValueError(
                f"{name} has {len(rows)} entries and the model has {len(self._depths)} routers "
                f"(in layers {self._depths}): pass one per router, in forward order"
            )
        return rows


class TrainingLog:
    """The log of a training loop: a recorder whose exceptions never end the run.

    Methods as in ``RunRecorder`` and ``RunJudge``. ``say`` gets a warning of the first one, and the
    next call is tried as usual. Without a recorder, on ranks that do not write, calls do nothing.
    """

    def __init__(
        self, recorder: RunRecorder | None, say: Callable[[str], None] = _logger.warning
    ) -> None:
        self._recorder, self._say, self._warned = recorder, say, False

    def step(self, record: Mapping[str, Any]) -> list[float | None] | None:
        """Write a step; ``record`` holds the arguments of ``RunRecorder.record_step``.

        Returns the collapse index of every router; ``None`` if recording failed or nothing is
        written on this rank.
        """
        return self._try(lambda log: log.record_step(**record), None)

    def event(self, step: int, event: str, values: Mapping[str, Any], **more: Any) -> None:
        """Write an event with its ``values``; ``more`` are further fields of the record."""
        self._try(lambda log: log.record_event(step=step, event=event, values=values, **more), None)

    def alerts(self) -> list[Alert]:
        """What began or grew worse since the last call; empty on ranks that do not write."""
        return self._try(RunRecorder.alerts, [])

    def judgement(self) -> bytes | None:
        """The state of the judge for a checkpoint; ``None`` if there is none."""
        return self._try(RunRecorder.judgement, None)

    def collapsed(self) -> tuple[str, ...]:
        """See ``RunJudge.collapsed``; empty if nothing is judged."""
        return self._try(lambda log: log.with_judge(RunJudge.collapsed), None) or ()

    def collapse_onset(self) -> int | None:
        """See ``RunJudge.collapse_onset``; ``None`` also if nothing is judged."""
        return self._try(lambda log: log.with_judge(RunJudge.collapse_onset), None)

    def verdict(self) -> str:
        return self._try(RunRecorder.verdict, "")

    def sync(self) -> bool:
        """Whether all that was written is on the disk; true on ranks that do not write."""
        return self._recorder is None or self._try(RunRecorder.sync, False)

    def end(self, step: int, reason: str) -> None:
        """Write why the run ended, and close the log; see ``RunRecorder.close``."""
        self._try(lambda log: log.close(step=step, reason=reason), None)

    def _try(self, call: Callable[[RunRecorder], _Answer], otherwise: _Answer) -> _Answer:
        if self._recorder is None:
            return otherwise
        try:
            return call(self._recorder)
        except Exception as error:
            if not self._warned:
                self._warned = True
                # If the warning fails too, there is nothing left to do: training continues.
                with contextlib.suppress(Exception):
                    self._say(f"the run log has a gap, training continues: {error!r}")
            return otherwise


def _described(model: Any) -> dict[str, Any]:
    """A plain copy; ``ValueError`` if a key is missing that the log needs."""
    described = plain(model) if isinstance(model, Mapping) else {}
    depths, *sizes = map(described.get, _NEEDED)
    if None in sizes or not isinstance(depths, list):
        needed = "layers (a list of the routers' depths), num_experts and top_k"
        raise ValueError(f"model is {model!r:.300}: pass a dict with {needed}")
    return described


def _of_counted(call: Callable[..., Any], rows: Sequence[Any], *more: Sequence[Any]) -> list[Any]:
    """``call`` of every row; ``None`` where there is none, of a router that was not counted."""
    found: list[Any] = []
    for row, *rest in zip(rows, *more, strict=True):
        found.append(None)
        if row is not None:
            found[-1] = call(row, *rest)
    return found


def _listed(values: Any) -> list[Any]:
    """An array or its row as a list; a single value as a list of one."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(values, Iterable):
        return list(values)
    return [] if values is None else [values]


def _finished(record: Mapping[str, Any], matrices: bool) -> Mapping[str, Any]:
    """The line of a record, made on the writing thread; with the matrices if there is time."""
    if not matrices or "tokens_per_expert" not in record:
        return without_matrices(record, False)
    biases = [_encoded_biases(row) for row in record["expert_bias"]]
    rows = _of_counted(array.tolist, record["tokens_per_expert"])
    means = {
        name: [[rounded(plain(mean), 4) for mean in row] for row in record[name]]
        for name in MEANS
        if name in record
    }
    return {**record, **means, "expert_bias": biases, "tokens_per_expert": rows}


def _encoded_biases(row: array[float]) -> msgspec.Raw | list[float | None]:
    """A row of biases as text of the line. They are most of its bytes, so one format makes them."""
    if not all(map(math.isfinite, row)):
        return [rounded(bias, 4) for bias in row]
    text = ",".join([_BIAS_FORMAT] * len(row)) % tuple(row)
    return msgspec.Raw(f"[{text}]".encode())


def plain(value: Any) -> Any:
    """A copy in Python's own types; values that JSON cannot hold become text."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numbers and arrays of numpy and torch
        return plain(value.tolist())
    return str(value)
