"""One run of several logs: each actor of a training without a common group writes a part.

A step is summed once every part has it; one that a part skipped is left out. The sum waits up to
``LAG_S`` for a part, then continues without it until it has caught up. Of the events only the end
is taken over, once every part has ended: alerts and evaluations belong to a part.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from microscope_tui import runlog
from microscope_tui.runlog import EventRecord, RunFile, RunRecord, StepEntry, drop_from, safe_text
from microscope_tui.sources.dumps import Late
from microscope_tui.sources.part_sums import summed
from microscope_tui.sources.reader import DEFAULT, Batch, Record, RecordReader
from microscope_tui.sources.translated_log import TranslatedLog

LAG_S = 60.0
MOST_WAITING = 1 << 20
"""Bytes of a part that wait for the others; then it is not read on."""
_LOOK_S = 2.0


class MergedRun(RunFile, frozen=True, kw_only=True):
    foreign: ClassVar[bool] = True
    parts: Sequence[RunFile]

    def open(self) -> runlog.Source:
        return TranslatedLog(PartsReader(self))

    def glance(self) -> runlog.Glance:
        return runlog.Glance(identity=self.identity())

    def identity(self) -> runlog.Stamp:
        return runlog.Stamp(0, 0, self.size, round(self.modified * 1e9), str(self.path))


def merge(path: Path, parts: Sequence[RunFile]) -> MergedRun:
    """``parts`` as one run at ``path``."""
    newest, size = max(part.modified for part in parts), sum(part.size for part in parts)
    return MergedRun(safe_text(parts[0].part[0] or path.name), path, newest, size, parts=parts)


def merged(root: Path, logs: Sequence[RunFile]) -> list[RunFile]:
    """The logs, with the parts of a run as that run; not if ``root`` is a part itself."""
    found: dict[Path, RunFile] = {}
    groups: dict[tuple[Path, str], list[RunFile]] = {}
    for log in logs:
        depth = 1 if log.path.name.startswith(runlog.LOG_NAME) else 0
        if log.part[1] and len(log.path.relative_to(root).parts) > depth:
            groups.setdefault((log.path.parents[depth], log.part[0]), []).append(log)
        else:
            found[log.path] = log
    for folder, run in sorted(groups):
        path = Path(f"{folder}#{run}") if folder in found else folder
        found[path] = merge(path, groups[folder, run])
    return list(found.values())


class Part:
    def __init__(self, file: RunFile) -> None:
        self.name = file.part[1] or safe_text(file.path)
        self.source = file.open()
        self.course = runlog.Course()
        self.reader = runlog.RunReader(self.name)
        self.header: Record = {}
        self.layout: object = None
        self.end: EventRecord | None = None
        self.waiting: list[tuple[int, StepEntry]] = []
        """Steps that are not summed yet."""
        self.joined = False
        """Whether its last step was summed: it should have the next one."""
        self.behind = False
        self.lacks = 0
        self.why = ""
        """Why it is not summed."""

    @property
    def next(self) -> int:
        """The lowest step that waits."""
        return self.waiting[0][0]

    @property
    def has_room(self) -> bool:
        return sum(entry.length for _, entry in self.waiting) < MOST_WAITING

    def read(self, max_bytes: int) -> bool:
        """False if nothing is new; ``Late`` if the log was replaced."""
        chunk = self.source.read(max_bytes)
        if chunk.restarted:
            raise Late
        try:
            for entry in self.reader.feed(chunk.data):
                self._take(entry)
        except runlog.UnknownFormat as error:
            self.why = str(error)
        return bool(chunk.data)

    def _take(self, entry: runlog.Entry) -> None:
        drop_from(self.waiting, self.course.take(entry))
        if isinstance(entry, EventRecord):
            self.end = entry if entry.event == "end" else self.end
            return
        self.end = None
        if isinstance(entry, RunRecord):
            before, self.layout = self.layout, (entry.routers, entry.counts, entry.profile)
            if before not in (None, self.layout):
                self.why = "another model begins in its log"
            try:
                self.header = runlog.object_of(self.reader.header.strip(b" \t\r\n\0"))
                runlog.encode_record(self.header)
            except (ValueError, RecursionError):
                self.why = "it has no run record that can be copied"
        elif not self.course.repeats:
            self.waiting.append((entry.record.step, entry))

    def remark(self, front: int) -> str:
        """What the sum lacks of it."""
        last = f"{self.course.last_step:,}"
        if self.why:
            return f"{self.name} is not summed: {self.why}"
        if self.behind:
            return f"{self.name} is behind at step {last}: the sum continues without it"
        if self.lacks:
            return f"{self.name} lacks {self.lacks:,} steps of the others: they are left out"
        return f"{self.name} is at step {last}" if self.course.last_step < front else ""


class PartsReader(RecordReader):
    def __init__(self, run: MergedRun) -> None:
        super().__init__(run.path, run.name, DEFAULT)
        self._files = {file.path: file for file in run.parts}
        self._run = run.parts[0].part[0]
        self._known = runlog.KnownLogs()
        self._start()

    def _start(self) -> None:
        self._parts: list[Part] = []
        for path in sorted(self._files):
            part = Part(self._files[path])
            if any(part.name == other.name for other in self._parts):
                part.why = f"{safe_text(path)} is that part again"
            self._parts.append(part)
        self._layout: object = None
        self._summed = -1  # the last step
        self._begun = self._ended = False
        self._blocked: float | None = None  # since when the sum waits
        self._next_look = time.monotonic() + _LOOK_S

    @property
    def _fitting(self) -> list[Part]:
        return [part for part in self._parts if not part.why]

    def read(self, max_bytes: int = 1 << 20) -> Batch:
        piece = max(1 << 16, max_bytes // len(self._parts))
        try:
            self._look()
            moved = [part.read(piece) for part in self._fitting if part.has_room]
        except Late:
            self._start()
            self.exhausted = False
            return Batch((), True)
        records = list(self._sums())
        self.report(*(part.source for part in self._parts))
        self.exhausted = not records and not any(moved)
        front = max((part.course.last_step for part in self._fitting), default=0)
        there = sum(part.course.last_step == front for part in self._fitting)
        number = len(self._parts)
        self.parts = f"{there} of {number} parts at step {front:,}" if there < number else ""
        remarks = [part.remark(front) for part in self._parts]
        self.missing = "; ".join(filter(None, [self.parts, *remarks]))
        return Batch(records)

    def _look(self) -> None:
        """``Late`` if there is a new part: it may have steps that were summed without it."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_S
        before = len(self._files)
        for file in runlog.find_runs(self.path, self._known):
            if file.part[1] and file.part[0] == self._run:
                self._files.setdefault(file.path, file)
        if len(self._files) > before:
            raise Late

    def _sums(self) -> Iterator[Record]:
        while active := self._active():
            lost = [part for part in active if not part.waiting]
            slow = lost
            if not lost:
                lost = [part for part in active if part.next <= self._summed]
                slow = [part for part in active if lost and part not in lost]  # they may follow
            if not slow:
                yield from self._next(active)
                continue
            if not self._waited(slow):
                return
            for part in lost:
                part.behind = True
                part.joined = False
        yield from self._end()

    def _end(self) -> Iterator[Record]:
        """The end of the run, once all parts have ended."""
        reasons = [part.end.reason for part in self._fitting if part.end]
        if reasons and not self._ended and len(reasons) == len(self._fitting):
            self._ended = True
            reason = min(reasons, key="finished".__eq__)
            yield {"kind": "event", "step": self._summed, "event": "end", "reason": reason}

    def _active(self) -> list[Part]:
        """The parts that the next step needs; none if no step waits."""
        for part in self._fitting:
            if part.behind:
                drop = [one for one in part.waiting if one[0] <= self._summed]
                part.waiting = part.waiting[len(drop) :]
                part.behind = not part.waiting
        present = [part for part in self._fitting if not part.behind]
        if not any(part.waiting for part in present):
            return []
        return [part for part in present if part.waiting or not part.end]

    def _waited(self, slow: Sequence[Part]) -> bool:
        """Whether nothing more is expected from these parts."""
        if any(part.has_room and not part.source.exhausted for part in slow):
            return False
        self._blocked = self._blocked or time.monotonic()
        waited = time.monotonic() - self._blocked
        sources = [part.source for part in self._parts]
        if all(source.changed_at is None for source in sources):  # else only our clock counts
            waited = max(waited, time.time() - max(source.modified or 0.0 for source in sources))
        return waited >= LAG_S

    def _refuse_misfits(self, active: Sequence[Part]) -> bool:
        """True if there are any."""
        self._layout = self._layout or Counter(part.layout for part in active).most_common(1)[0][0]
        misfits = [part for part in active if part.layout != self._layout]
        for part in misfits:
            part.why = "its routers, top-k, counts or profile are others"
        return bool(misfits)

    def _next(self, active: Sequence[Part]) -> Iterator[Record]:
        """The sum of the lowest step that waits; nothing if a part lacks it, or does not fit."""
        if self._refuse_misfits(active):
            return
        step = min(part.next for part in active)
        entries: list[StepEntry] = []
        is_whole = True
        for part in active:
            if part.next == step:
                entries.append(part.waiting.pop(0)[1])
                part.joined = True
            elif part.joined:
                part.lacks += 1
                is_whole = False
        self._summed = step
        self._blocked = None
        if not self._begun:
            self._begun = True
            yield active[0].header | {"run": self._name, "part": None, "resumed_at_step": None}
        if is_whole:
            self._ended = False
            behind = ", ".join(part.name for part in self._fitting if part.behind)
            yield summed(step, entries) | (
                {"incomplete": f"without {behind:.200}"} if behind else {}
            )
