"""One run of several logs: each actor of a training without a common group writes a part.

What follows from the counts is derived from their sum. A gradient norm is the largest: it is the
same in all parts if gradients are averaged, else that of their sum is unknown. The bias is that of
the first part; ``mean_entropy`` becomes a lower bound; means of experts are not kept.

A step is summed once every part has it. If a part goes back to a step that was summed, the logs are
read to their ends to learn where they restart, then again without the steps that no longer hold.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, cast

from msgspec import Raw

from microscope_tui import measures, runlog
from microscope_tui.runlog import EventRecord, RunFile, RunRecord, StepEntry, drop_from, rounded
from microscope_tui.sources.dumps import Late
from microscope_tui.sources.reader import DEFAULT, Batch, Record, RecordReader
from microscope_tui.sources.records import step_record
from microscope_tui.sources.translated_log import TranslatedLog

LAG_S = 300.0
"""A part that keeps the others waiting so long is left out until it writes again."""
MOST_WAITING = 16 << 20  # bytes of all parts that are not summed yet
LOOK_S = 2.0
_RULES: dict[str, Callable[[Sequence[float]], float]] = {
    **dict.fromkeys(("tokens", "tokens_per_s", "router.tokens", "router.unrouted"), sum),
    **dict.fromkeys(("grad_norm", "step_time_s", "memory_bytes"), max),
    **dict.fromkeys(("router.grad_norm", "router.max_logit", "router.layer_changed"), max),
    **dict.fromkeys(("router.looked_tensors", "router.still_tensors"), min),
    "router.unchanged_tensors": min,
}
"""All others are means over tokens."""
_Column = Sequence[float | None]


class MergedRun(RunFile, frozen=True, kw_only=True):
    """A run of several logs: each actor of a training without a common group writes a part."""

    foreign: ClassVar[bool] = True
    parts: Sequence[RunFile]
    named: bool = False
    """By the user: they may have runs of their own, and no other is looked for at ``path``."""

    def open(self) -> runlog.Source:
        return TranslatedLog(PartsReader(self))

    def glance(self) -> runlog.Glance:
        return runlog.Glance(identity=self.identity())

    def identity(self) -> runlog.Stamp:
        """Changes with the size of the parts together and with the time of the newest."""
        return runlog.Stamp(0, 0, self.size, round(self.modified * 1e9), str(self.path))


def merge(path: Path, parts: Sequence[RunFile], *, named: bool = False) -> MergedRun:
    """One run of ``parts`` (at least one), as new as the newest and as large as all together.

    ``named``: the user gave the parts, which keep their order; else they are sorted by path. The
    first one names the run.
    """
    if not named:
        parts = sorted(parts, key=lambda part: part.path)
    newest, size = max(part.modified for part in parts), sum(part.size for part in parts)
    name = parts[0].part_of or parts[0].name
    return MergedRun(name, path, newest, size, parts=parts, named=named)


def merged(root: Path, logs: Sequence[RunFile]) -> list[RunFile]:
    """The logs, with the parts in a folder as one run; not if ``root`` is a part itself."""
    runs: dict[Path, list[RunFile]] = {}
    found: list[RunFile] = []
    for log in logs:
        if log.part_of and log.path.parents[1].is_relative_to(root):
            runs.setdefault(log.path.parents[1], []).append(log)
        else:
            found.append(log)
    return found + [merge(folder, parts) for folder, parts in runs.items()]


class Part:
    """The log of one part, read as far as the others allow, and the steps that wait for theirs."""

    def __init__(self, file: RunFile, restarts: dict[int, int], named: bool) -> None:
        """``restarts``: the first step that each one in the log replaces, by its offset."""
        self._named = named
        self.name = file.name
        self.source = file.open()
        self.reader = runlog.RunReader(self.name)
        self.layout: object = None
        self.course = runlog.Course()
        self.restarts = restarts
        self.waiting: list[tuple[int, StepEntry]] = []
        self.given = -1  # the last step that was summed
        self.goes_back = False
        self.why = ""  # it is not summed
        self.is_late = False
        self.ended = ""  # and why, if the last record of its log is the end

    @property
    def last_step(self) -> int:
        """The largest step that was read; 0 before the first."""
        return max(0, self.course.last_step)

    def read(self, size: int) -> bool:
        """False if nothing is new, or ``size`` bytes wait; ``Late`` if the log was replaced."""
        if sum(entry.length for _, entry in self.waiting) >= size:
            return False
        chunk = self.source.read(size)
        if chunk.restarted:
            self.restarts.clear()
            raise Late
        try:
            for entry in self.reader.feed(chunk.data):
                self._take(entry, self.reader.lines.line_start)
        except runlog.UnknownFormat as error:
            self.why = str(error)
        return bool(chunk.data)

    def _take(self, entry: runlog.Entry, offset: int) -> None:
        cut = self.course.take(entry)
        if cut is not None:
            drop_from(self.waiting, cut)
            self.restarts[offset] = cut
            self.goes_back |= cut <= self.given
            if len(self.restarts) > 1000:
                self.why = "it restarts more than 1,000 times"
        if isinstance(entry, EventRecord):
            if entry.event == "end":
                self.ended = entry.reason or "finished"
        else:
            self.ended = ""
        if isinstance(entry, RunRecord):
            run = entry.run
            if self._named:
                run = ""
            other, self.layout = self.layout, (run, entry.routers, entry.counts)
            if other not in (None, self.layout):
                self.why = "another model begins in its log"
            if entry.counts == "shares":
                self.why = "it has shares: log counts, which can be summed"
        elif isinstance(entry, StepEntry) and not self.course.repeats:
            step = entry.record.step
            if all(at <= offset or step < cut for at, cut in self.restarts.items()):
                self.waiting.append((step, entry))


class PartsReader(RecordReader):
    """Reads the logs of all parts side by side; a step is summed once every part has it."""

    def __init__(self, run: MergedRun) -> None:
        super().__init__(run.path, run.name, DEFAULT)
        self._files: dict[Path, tuple[RunFile, dict[int, int]]] = {}
        self._known = runlog.KnownLogs()
        self._named = run.named
        self._next_look = 0.0
        self._start(run.parts)

    def _start(self, new: Sequence[RunFile] = ()) -> None:
        self._files |= {file.path: (file, {}) for file in new}
        paths = self._files if self._named else sorted(self._files)
        self._parts = [Part(*self._files[path], self._named) for path in paths]
        self._begun = self._ended = False
        self._lacking = 0
        self._waits_since = 0.0  # by the clock of the file system; 0: it does not wait

    def read(self, max_bytes: int = 1 << 20) -> Batch:
        try:
            moved = self._read_parts()
        except Late as late:
            self._start(late.args)
            self.exhausted = False
            return Batch((), True)
        self.report(*(part.source for part in self._parts))
        records = list(self._sums())
        self.exhausted = not records and not moved
        self._describe()
        return Batch(records)

    def _read_parts(self) -> bool:
        """Whether there was anything; ``Late`` if all, with its new parts, has to be read again."""
        self._look_for_new()
        size = max(1 << 16, MOST_WAITING // len(self._parts))
        moved = any([part.read(size) for part in self._parts if not part.why])
        if any(part.is_late and part.read(size) for part in self._parts):
            raise Late  # it is back
        if self._ended and any(not part.ended for part in self._parts if not part.why):
            raise Late
        if any(part.goes_back for part in self._parts):
            for part in self._parts:
                part.waiting.clear()
            if not moved:
                raise Late
        return moved

    def _look_for_new(self) -> None:
        if not self._named and time.monotonic() > self._next_look:
            self._next_look = time.monotonic() + LOOK_S
            found = runlog.find_runs(self.path, self._known)
            if new := [file for file in found if file.part_of and file.path not in self._files]:
                raise Late(*new)

    def _describe(self) -> None:
        front = max(part.last_step for part in self._parts)
        late = [part for part in self._parts if part.why or part.last_step < front]
        number = len(self._parts)
        there = f"{number - len(late)} of {number} parts at step {front:,}"
        remarks = [there] if late else []
        for part in late:
            why = f"not summed: {part.why}" if part.why else f"at step {part.last_step:,}"
            remarks.append(f"{part.name} is {why}")
        if self._lacking:
            remarks.append(f"steps that a part lacks, left out if it had begun: {self._lacking:,}")
        for log, (_, run) in self._known.logs.items():
            if run is None and log.endswith(runlog.LOG_NAME):
                remarks.append(f"{runlog.safe_text(log, 200)} holds no record")
        self.missing = "; ".join(remarks)
        self.parts = f"{there}, without {late[0].name.rpartition('/')[2][:20]}" if late else ""
        summed = sum(part.given >= 0 for part in self._parts)
        few = f"only {summed} of {number} parts are summed: those that fit {self._parts[0].name}"
        self.withheld = few if 0 < 2 * summed < number else ""

    def _sums(self) -> Iterator[Record]:
        while active := self._ready():
            first = active[0]
            misfits = [part for part in active if part.layout != first.layout]
            for part in misfits:
                part.why = f"its run, routers, top-k or counts are not those of {first.name}"
            if not misfits:
                yield from self._next(active)
        yield from self._end()

    def _end(self) -> Iterator[Record]:
        """Once all parts have ended; "finished" only if each of them finished."""
        parts = [part for part in self._parts if not part.why]
        left = any(part.waiting or not part.ended or not part.source.exhausted for part in parts)
        if left or not self._begun or self._ended:
            return
        self._ended = True
        reasons = [part.ended for part in parts if part.ended != "finished"]
        yield {"kind": "event", "event": "end", "reason": reasons[0] if reasons else "finished"}

    def _ready(self) -> Sequence[Part]:
        """The parts of the next step; none while it is waited for."""
        active = [part for part in self._parts if not part.why]
        late = [part for part in active if not part.waiting]
        if len(late) == len(active) or not all(part.source.exhausted for part in late):
            return ()
        if late:
            self._waits_since = self._waits_since or self.modified or 0.0
            if time.time() - self._waits_since < LAG_S:
                return ()
        for part in late:
            part.is_late = True
            part.why = f"no step after {part.last_step:,} for {LAG_S:.0f} s"
        return [part for part in active if part.waiting]

    def _next(self, active: Sequence[Part]) -> Iterator[Record]:
        """The sum of the lowest step that waits; nothing if a part that has begun lacks it."""
        step = min(part.waiting[0][0] for part in active)
        there = [part for part in active if part.waiting[0][0] == step]
        entries = [part.waiting.pop(0)[1] for part in there]
        self._waits_since = 0.0
        absent = [part for part in active if part not in there]
        self._lacking += bool(absent)
        if all(part.given < 0 for part in absent):
            if not self._begun:
                self._begun = True
                header = there[0].reader.header.replace(b'"part"', b'"first_part"', 1)
                yield cast(Record, Raw(header))
            yield summed(step, entries)
        for part in there:
            part.given = step


def summed(step: int, entries: Sequence[StepEntry]) -> Record:
    """The record of ``step`` for the whole run, from that of every part.

    Counts are added; another number has a rule by its name, or is the mean weighted by tokens.
    """
    lines = [entry.numbers() for entry in entries]
    tokens = [entry.record.tokens for entry in entries]
    numbers: dict[str, Any] = {}
    router: dict[str, Any] = {}
    losses: dict[str, Any] = {}
    for name in dict.fromkeys(chain.from_iterable(lines)):
        group, _, inner = name.partition(".")
        values: list[Any] = [line.get(name) for line in lines]
        if group == "router":
            columns = zip(*(_row(value, entries[0].routers) for value in values), strict=True)
            router[inner] = [_one(name, column, tokens) for column in columns]
        elif group == "losses":
            losses[inner] = _one(name, values, tokens)
        else:
            numbers[name] = _one(name, values, tokens)
    biases = entries[0].matrices().expert_bias
    return (
        {"kind": "step"}
        | numbers
        | step_record(
            step,
            list(map(_added, *(entry.matrices().tokens_per_expert for entry in entries))),
            expert_bias=biases if any(biases) else None,
            router={name: row for name, row in router.items() if name not in measures.DERIVED},
            time=entries[0].record.time,
            losses=losses or None,
        )
    )


def _row(value: Any, routers: int) -> _Column:
    return value if isinstance(value, list) and len(value) == routers else [None] * routers


def _added(*rows: list[int] | None) -> list[int] | None:
    """``None`` if the row of a part is unknown, or of another length."""
    known = [row for row in rows if row]
    if len(known) < len(rows) or len(set(map(len, known))) > 1:
        return None
    return list(map(sum, zip(*known, strict=True)))


def _one(name: str, values: _Column, weights: _Column) -> float | None:
    """By the rule of ``name``, which needs a number of every part; else the mean."""
    known = [value for value in values if value is not None]
    rule = _RULES.get(name)
    if not known or (rule and len(known) < len(values)):
        return None
    if any(map(math.isnan, known)):
        return math.nan
    if rule:
        number = rule(known)
        return int(number) if number.is_integer() else number
    pairs = [(v, w or 1e-300) for v, w in zip(values, weights, strict=True) if v is not None]
    total = sum(weight for _, weight in pairs)
    return rounded(sum(value * (weight / total) for value, weight in pairs), 7)
