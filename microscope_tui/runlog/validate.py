"""Validates a log against the format; strict where the reader is tolerant.

The reader saves what it can, which is right for monitoring and wrong while a writer is being
developed. The validator reports line by line what breaks the format (``error``) and what is valid
but probably not intended (``hint``).
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from microscope_tui.runlog.problems import (
    COUNT,
    POSITIVE,
    TIME,
    Problem,
    Problems,
    fits,
    number,
    shown,
    strict_object,
)
from microscope_tui.runlog.records import FORMAT_VERSION
from microscope_tui.runlog.tail import MAX_LINE_BYTES
from microscope_tui.runlog.validate_run import RunPromise, check_event, check_run
from microscope_tui.runlog.validate_steps import check_step

__all__ = ["LogValidator", "Problem", "problems_in"]

_KINDS = ("run", "step", "event")
_CLOCK_SLACK_S = 1.0  # times are rounded, and clocks are set


def problems_in(lines: Iterable[tuple[int, bytes]]) -> Iterator[Problem]:
    """The problems of a log given as (line number from 1, line without its newline).

    In order of the lines; at the end one summary for each class with more than twenty.
    """
    validator = LogValidator()
    for line_number, line in lines:
        yield from validator.check(line_number, line)
    yield from validator.finish()


class LogValidator:
    """Checks one line after the other, with the state that later lines are checked against."""

    def __init__(self) -> None:
        self.records: Counter[str] = Counter()
        """Records by kind; those of unknown kinds together as ``other``."""
        self.problems = Problems()
        self._promise = RunPromise()
        self._seen_run = self._said_no_run = False
        self._last_step: int | None = None
        self._resumed: tuple[int, int] | None = None  # first step to come, line that says so
        self._last_time: float | None = None  # of a step since the last run record
        self._ended_at: int | None = None  # line of an ``end`` that nothing may follow
        self._measured = False

    def check(self, line_number: int, line: bytes) -> list[Problem]:
        """The problems of this line."""
        problems = self.problems
        problems.line = line_number
        if len(line) > MAX_LINE_BYTES:
            self.overlong()
        elif (record := strict_object(problems, line)) is not None:
            self._record(record)
        return problems.new()

    def overlong(self) -> None:
        """The line at ``problems.line`` is longer than any reader takes."""
        self.problems.error(
            "overlong",
            f"longer than {MAX_LINE_BYTES >> 20} MB and skipped by every reader: "
            "write one step a line",
        )

    def finish(self) -> list[Problem]:
        """Problems that are known only at the end of the log, and the summaries."""
        if self.records["step"] and not self._measured:
            self.problems.hint(
                "no load",
                "no step has tokens_per_expert or router.effective_experts: there is no load to "
                "judge, write one of them",
            )
        return [*self.problems.new(), *self.problems.rest()]

    def _record(self, record: dict[str, Any]) -> None:
        kind = record.get("kind")
        self.records[kind if isinstance(kind, str) and kind in _KINDS else "other"] += 1
        if not isinstance(kind, str):
            self.problems.error(
                "kind",
                f"kind is {shown(kind)}, expected one of {', '.join(_KINDS)}: "
                "every record names its kind",
            )
        elif kind not in _KINDS:
            self.problems.hint(
                "unknown kind",
                f"kind {shown(kind)} is not one of {', '.join(_KINDS)}: readers ignore the record",
            )
        else:
            self._known(kind, record)

    def _known(self, kind: str, record: dict[str, Any]) -> None:
        if kind == "run":
            self._run(record)
        elif not self._seen_run and not self._said_no_run:
            self._said_no_run = True
            self.problems.error(
                "no run",
                f"a {kind} before any run record: write the run record first, with "
                f"format_version {FORMAT_VERSION} and model.layers, num_experts and top_k",
            )
        if kind == "step":
            self._step(record)
        elif kind == "event" and check_event(self.problems, record) == "end":
            self._ended_at = self.problems.line

    def _run(self, record: dict[str, Any]) -> None:
        promise = check_run(self.problems, record)
        first = record.get("resumed_at_step")
        if self._seen_run:
            self._check_restart(record, promise)
        if first is not None:
            self._last_step = None
            self._resumed = (first, self.problems.line) if fits(first, POSITIVE) else None
        self._promise, self._seen_run = promise, True
        self._last_time = self._ended_at = None

    def _check_restart(self, record: dict[str, Any], promise: RunPromise) -> None:
        if record.get("resumed_at_step") is None:
            self.problems.hint(
                "no resumed_at_step",
                "another run record without resumed_at_step: write the first step that will be "
                "written again (checkpoint step + 1; 1 after a fresh start)",
            )
        before = self._promise
        shape = (promise.routers, promise.num_experts, promise.top_k)
        if before.routers is not None and shape != (
            before.routers,
            before.num_experts,
            before.top_k,
        ):
            self.problems.hint(
                "another model",
                "layers, num_experts or top_k differ from the run record before: the diagnosis "
                "restarts here, write each model to its own folder",
            )

    def _step(self, record: dict[str, Any]) -> None:
        step = record.get("step")
        if step is None:
            self.problems.error(
                "step", "step is missing: write the number of optimizer steps completed, from 1"
            )
        known = number(self.problems, "step", step, COUNT)
        if known == 0:
            self.problems.hint(
                "step 0",
                "step is 0, as in files of other tools: a trainer writes the number of optimizer "
                "steps completed, from 1",
            )
        if known is not None:
            self._check_order(int(known))
        self._check_time(record.get("time"))
        if self._ended_at is not None:
            self.problems.hint(
                "after end",
                f"a step after the end event of line {self._ended_at:,}: write a run record with "
                "resumed_at_step before continuing",
            )
        self._measured |= check_step(self.problems, record, self._promise)

    def _check_order(self, step: int) -> None:
        problems, last, planned = self.problems, self._last_step, self._promise.planned_steps
        if self._resumed is not None and step < self._resumed[0]:
            problems.error(
                "before resumed",
                f"step {step:,} is below resumed_at_step {self._resumed[0]:,} of line "
                f"{self._resumed[1]:,}: resumed_at_step is the first step that is written again",
            )
        elif last is not None and step == last:
            problems.error(
                "twice", f"step {step:,} twice in a row: write each step once, from one process"
            )
        elif last is not None and step < last:
            problems.error(
                "backwards",
                f"step {step:,} after step {last:,}: write a run record with resumed_at_step "
                f"{step:,} before it if the run was resumed",
            )
        if planned is not None and step > planned:
            problems.hint(
                "beyond planned",
                f"step {step:,} is beyond planned_steps {planned:,}: write the number of optimizer "
                "steps that the run is to make, or null",
            )
        self._last_step, self._resumed = step, None

    def _check_time(self, time: Any) -> None:
        if time is None or not fits(time, TIME):
            return
        if self._last_time is not None and time < self._last_time - _CLOCK_SLACK_S:
            self.problems.hint(
                "clock",
                f"time {time:.3f} is {self._last_time - time:.3g} s before that of the step above: "
                "write Unix seconds, from one machine",
            )
        self._last_time = time
