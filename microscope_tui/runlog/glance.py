"""Summary of a run from the first and the last lines of its log only.

A list of a thousand runs must not read a thousand logs: two short reads per run give its name,
plan, last step and end. The plan is that of the newest run record. In a resumed run it is in the
middle of the log: if the last step is beyond the first plan, it is searched in the last 4 MB; an
impossible plan is left out.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from microscope_tui.runlog.compressed import ARCHIVE_SUFFIXES
from microscope_tui.runlog.decode import decode_line
from microscope_tui.runlog.records import (
    BadLine,
    EventRecord,
    RunRecord,
    StepRecord,
    UnknownFormat,
    seconds_between,
)
from microscope_tui.runlog.tail import Identity, identity_of_open, open_regular_file

_HEAD_BYTES = 1 << 13
_TAIL_BYTES = 1 << 13
_MOST_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Glance:
    """The ends of one log."""

    run: RunRecord | None = None
    last: StepRecord | None = None
    """The last whole step."""
    step_time_s: float | None = None
    """Seconds between the last two steps, if known."""
    end: EventRecord | None = None
    """The event that ended the run, if it is the last record."""
    error: str | None = None
    identity: Identity | None = None
    """State of the file that was read; ``None`` if it cannot be read."""


def glance(path: Path) -> Glance:
    """Read both ends of the log at ``path``; never raises because of its content."""
    try:
        file = open_regular_file(path)
    except OSError as error:
        return Glance(error=error.strerror or str(error))
    try:
        identity = identity_of_open(file)
        if path.suffix in ARCHIVE_SUFFIXES:
            return Glance(identity=identity)  # an archive's end is unknown before it is unpacked
        run = _header(file)
        steps, end, resumed = _last(file, identity.size)
        steps.sort(key=lambda step: step.step)
        last = steps[-1] if steps else None
        run = _with_sound_plan(resumed or run, last, file, identity.size)
        return Glance(run, last, _step_time(steps), end, identity=identity)
    except UnknownFormat as error:
        return Glance(error=str(error))
    except OSError as error:
        return Glance(error=error.strerror or str(error))
    finally:
        os.close(file)


def _with_sound_plan(
    run: RunRecord | None, last: StepRecord | None, file: int, size: int
) -> RunRecord | None:
    """``run``, or the newest run record of the log where the last step is beyond its plan."""
    if run is None or last is None or last.step <= (run.planned_steps or last.step):
        return run
    start = max(0, size - _MOST_BYTES)
    lines = os.pread(file, size - start, start).split(b"\n")
    headers = (_record(line) for line in reversed(lines) if b'"run"' in line)
    run = next((record for record in headers if isinstance(record, RunRecord)), run)
    return (
        run if last.step <= (run.planned_steps or last.step) else replace(run, planned_steps=None)
    )


def _header(file: int) -> RunRecord | None:
    """The run record of the first line; ``None`` for a log without one."""
    want = _HEAD_BYTES
    while True:
        head = os.pread(file, want, 0)
        end = head.find(b"\n")
        if end >= 0 or len(head) < want or want >= _MOST_BYTES:
            break
        want *= 8
    record = _record(head[:end] if end >= 0 else head)
    return record if isinstance(record, RunRecord) else None


def _last(file: int, size: int) -> tuple[list[StepRecord], EventRecord | None, RunRecord | None]:
    """The last two steps, an end event if it is the last record, and a late header."""
    want = _TAIL_BYTES
    while True:
        start = max(0, size - want)
        lines = os.pread(file, want, start).split(b"\n")
        found = _ends(lines[1:] if start else lines)
        if len(found[0]) == 2 or start == 0 or want >= _MOST_BYTES:
            return found
        want *= 8


def _ends(lines: list[bytes]) -> tuple[list[StepRecord], EventRecord | None, RunRecord | None]:
    steps: list[StepRecord] = []
    end: EventRecord | None = None
    resumed: RunRecord | None = None
    for line in reversed(lines):
        record = _record(line)
        if isinstance(record, RunRecord):
            if steps:
                return steps, end, resumed or record
            resumed = resumed or record  # nothing came after it yet: continue backwards
        elif isinstance(record, EventRecord):
            if record.event == "end" and not steps and resumed is None:
                end = end or record
        elif isinstance(record, StepRecord) and _still_holds(record, resumed):
            steps.append(record)
            if len(steps) == 2:
                break
    return steps, end, resumed


def _still_holds(step: StepRecord, resumed: RunRecord | None) -> bool:
    limit = resumed.resumed_at_step if resumed is not None else None
    return limit is None or step.step < limit


def _record(line: bytes) -> RunRecord | StepRecord | EventRecord | None:
    try:
        return decode_line(line)
    except BadLine:  # a torn or foreign line: the full reader counts those
        return None


def _step_time(steps: list[StepRecord]) -> float | None:
    return seconds_between(steps[0] if len(steps) == 2 else None, steps[-1]) if steps else None
