"""The scan: header, latest step, history and events of a log.

It decodes no matrix and judges nothing, so it takes little time. A preview of a long log is a scan
of a few hundred evenly spread steps.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from microscope_tui import measures
from microscope_tui.diagnosis import value_at
from microscope_tui.runlog import (
    EVERYTHING,
    Course,
    Entry,
    EventRecord,
    RouterInfo,
    RouterSummary,
    RunFile,
    RunRecord,
    Source,
    StepEntry,
    StepRecord,
    sample,
    step_at,
)
from microscope_tui.runlog.decode import number_name
from microscope_tui.runlog.index import Overview, sample_of, surviving_steps
from microscope_tui.runlog.records import seconds_between
from microscope_tui.watch.history import (
    MOST_LATER,
    Column,
    History,
    Row,
    Window,
    or_gap,
    rows_within,
)

PER_ROUTER = ("effective_experts", "entropy", "mean_entropy", "drop_rate", "max_load")
PER_RUN = ("loss", "learning_rate", "grad_norm")
_SOMETIMES = ("tokens_per_s", "step_time_s", "memory_bytes")
_MEANS = ("z_loss", "max_logit", "margin", "grad_norm", "disagreement")
"""Kept as the mean over the routers, ``router.z_loss``."""
DEFAULT_MEMORY = 128 * 1024 * 1024


def new_history(run: RunRecord, memory_bytes: int, expected_steps: int = 0) -> History:
    """Within ``memory_bytes``, its rows as wide as ``expected_steps`` need."""
    routers = len(run.routers)
    capacity = rows_within(memory_bytes, len(PER_RUN) + len(PER_ROUTER) * routers + MOST_LATER)
    stride = 1
    while stride * capacity < expected_steps:
        stride *= 2
    widths = {**dict.fromkeys(PER_RUN, 1), **dict.fromkeys(PER_ROUTER, routers)}
    return History(widths, capacity, stride)


_Curves = Mapping[str, Sequence[float | None]]
RowOf = Callable[[StepEntry], _Curves]


def row_maker(routers: int) -> RowOf:
    """A function from a step to its row in the history of so many routers; gaps are ``None``."""
    nothing = (None,) * routers

    def row_of(entry: StepEntry) -> _Curves:
        record = entry.record
        summary = record.router
        return {
            **_also_logged(record),
            **{name: (getattr(record, name),) for name in PER_RUN},
            **{name: getattr(summary, name) or nothing for name in PER_ROUTER},
        }

    return row_of


def _also_logged(record: StepRecord) -> dict[str, Sequence[float | None]]:
    found = {name: getattr(record, name) for name in _SOMETIMES}
    found |= {number_name(f"losses.{name}"): x for name, x in (record.losses or {}).items()}
    found |= {f"router.{name}": measures.mean_of(getattr(record.router, name)) for name in _MEANS}
    return {name: (value,) for name, value in found.items() if value is not None}


class BalanceNow(NamedTuple):
    """The collapse index of all experts, and as it is judged; ``None`` where it cannot be
    computed.
    """

    balance: float | None
    judged: float | None
    """Without an expert that (nearly) every token chooses."""
    without: tuple[int, ...] | None
    """The experts that this leaves out; ``None``: only counts would show which."""


LATELY = 32
"""Steps for which an expert that was left out is so by looser limits."""


def balance_now(
    summary: RouterSummary,
    index: int,
    router: RouterInfo,
    counts: Sequence[int] | None = None,
    lately: Callable[[], bool] = lambda: False,
) -> BalanceNow:
    """The collapse index of one router in one step, and the experts that its judgement leaves out.

    ``counts``: of the same step, if at hand; ``lately``: see ``left_out_lately``.
    """
    experts, top_k = router.num_experts, router.top_k
    load = value_at(summary.max_load, index)
    effective = value_at(summary.effective_experts, index)
    c = measures.collapse_index(effective, experts, top_k)
    if not measures.may_excuse(c, load, experts, top_k, measures.SLACK):
        return BalanceNow(c, c, ())  # the usual case
    slack = 0.0
    if lately():
        slack = measures.SLACK
    if counts is not None and len(counts) == experts:
        found = measures.balance(counts, top_k, slack)
        return BalanceNow(c, found.collapse_index, found.without)
    judged = measures.balance_of_summary(effective, load, experts, top_k, slack)
    if judged == c:
        return BalanceNow(c, c, ())
    return BalanceNow(c, judged, None)


def left_out_lately(history: History, index: int, router: RouterInfo, step: int) -> bool:
    """Whether the judged balance left out an expert in the steps up to ``step``."""
    window = Window(step - LATELY + 1, step)
    names = ("effective_experts", "max_load")
    few, loads = (history.columns(name, index, LATELY, window) for name in names)
    judged = judged_lows(few, loads, [step] * len(few), router)
    return judged != [c.low for c in balance(few, router)]


def balance(columns: Sequence[Column], router: RouterInfo) -> list[Column]:
    """Curves of effective experts as curves of c."""
    experts, top_k = router.num_experts, router.top_k

    def index(effective: float) -> float:
        return or_gap(measures.collapse_index(effective, experts, top_k))

    return [Column(index(c.low), index(c.mean), index(c.high)) for c in columns]


def judged_lows(
    effective: Sequence[Column], loads: Sequence[Column], steps: Sequence[int], router: RouterInfo
) -> list[float]:
    """The lowest c of each column as it is judged, or NaN; ``steps``: the first of each."""
    experts, top_k = router.num_experts, router.top_k
    found, left_out = [], -math.inf
    for step, few, load in zip(steps, effective, loads, strict=True):
        c = measures.collapse_index(few.low, experts, top_k)
        if measures.may_excuse(c, load.low, experts, top_k, measures.SLACK):  # in every step
            strict, loose = (
                measures.balance_of_summary(few.low, load.high, experts, top_k, slack)
                for slack in (0.0, measures.SLACK)
            )
            if strict != c:
                left_out = step
            if step - left_out < LATELY:
                c = loose
        found.append(or_gap(c))
    return found


MEAN_OF, KEPT = 8, 32
"""Steps with counts that are kept decoded, for a mean, and as lines, for the cost on ranks."""
Reread = Callable[[Row, RunRecord, int], Iterable[StepEntry]]
"""The steps of a row below a limit, if the log can be read again."""


class Scan:
    """What the records of a log add up to, with ``take`` and ``commit``.

    ``reread`` gives the steps of a row of history that a restart cuts, to be added again.
    """

    def __init__(self, reread: Reread, memory_bytes: int) -> None:
        self.run: RunRecord | None = None
        self.latest: StepEntry | None = None
        self.recent: deque[StepEntry] = deque(maxlen=MEAN_OF)
        self.counted: deque[StepEntry] = deque(maxlen=KEPT)
        """More of them, not decoded: that takes seven times the bytes."""
        self.end: EventRecord | None = None
        self.lost_records = 0
        self.evaluations: deque[EventRecord] = deque(maxlen=1000)
        self.held_out: EventRecord | None = None
        """The last evaluation with counts."""
        self.history = History({})
        self.expected_steps = 0
        self.intervals: deque[float] = deque(maxlen=33)
        """In seconds."""
        self.longest_pause = 0.0
        """In seconds, except at a restart."""
        self.repeated: tuple[int, int] | None = None
        """The first repeated step, and how often."""
        self._written: float | None = None
        self._course = Course()
        self._row_of = row_maker(0)
        self._reread = reread
        self._memory_bytes = memory_bytes

    def take(self, entry: Entry) -> None:
        """Add one record; not visible in the history before ``commit``.

        Of a repeated step the first one counts. A restart drops what it supersedes.
        """
        match entry:
            case StepEntry():
                self._take_step(entry)
            case RunRecord():
                self._take_run(entry)
            case EventRecord():
                self._take_event(entry)

    @property
    def with_counts(self) -> StepEntry | None:
        """The last step that logged counts."""
        if not self.recent:
            return None
        return self.recent[-1]

    def commit(self) -> bool:
        """Make the steps since the last call visible, under the lock of the readers; true if any
        were.
        """
        return self.history.commit()

    def make_room(self, lock: AbstractContextManager[object]) -> None:
        """Halve a full history, mostly outside ``lock``: only the caller changes it."""
        if self.history.full:
            with lock:
                self.history.commit()
            halved = self.history.halved()
            with lock:
                self.history = halved

    def _take_run(self, run: RunRecord) -> None:
        before, self.run = self.run, run
        self.end = self._written = None
        if before is not None and before.routers != run.routers:
            self.latest = self.held_out = None  # another model from here on
            self._course = Course()
            self.recent.clear()
            self.counted.clear()
        cut = self._course.take(run)
        if before is None or before.routers != run.routers:
            self.history, self._row_of = self._begun(run)
        elif cut is not None:
            self._restart(cut, before)

    def _begun(self, run: RunRecord) -> tuple[History, RowOf]:
        empty = new_history(run, self._memory_bytes, self.expected_steps)
        return empty, row_maker(len(run.routers))

    def _take_step(self, entry: StepEntry) -> None:
        run, step = self.run, entry.record.step
        if run is None:
            return
        holds = min(step - 1, self._course.last_step)  # earlier steps, up to here
        cut = self._course.take(entry)
        if self._course.repeats:
            first, times = self.repeated or (step, 1)
            self.repeated = first, times + (step == first)
            return
        if cut is not None:
            self._restart(cut, run)
        self.end = None
        before = None
        if self.latest is not None:
            before = self.latest.record
        if (duration := seconds_between(before, entry.record)) is not None:
            self.intervals.append(duration)
        self._note_pause(entry.record.time, entry.record.step_time_s)
        self.latest = entry
        for kept in (self.recent, self.counted):
            while kept and kept[-1].record.step > holds:
                kept.pop()
        if entry.has_counts:
            self.recent.append(entry)
            self.counted.append(copy(entry))
        self._add_step(entry)

    def _add_step(self, entry: StepEntry) -> None:
        record = entry.record
        self.history.add(record.step, self._row_of(entry), entry.offset, record.time)

    def _restart(self, step: int, run: RunRecord) -> None:
        torn = self.history.restart(step)
        if torn is not None:
            for entry in self._reread(torn, run, step):
                self._add_step(entry)
            self.history.close_row()
        self.history.last_step = step - 1
        kept = [e for e in self.evaluations if e.step is None or e.step < step]
        self.evaluations = deque(kept, maxlen=self.evaluations.maxlen)
        if self.held_out is not None and (self.held_out.step or 0) >= step:
            self.held_out = None

    def _note_pause(self, time: float | None, otherwise: float | None = None) -> None:
        pause = otherwise
        if time is not None:
            if self._written is not None:
                pause = time - self._written
            self._written = time
        if pause is not None and self.longest_pause < pause < math.inf:
            self.longest_pause = pause

    def _take_event(self, event: EventRecord) -> None:
        self._note_pause(event.time)
        if event.event == "end":
            self.end = event
        elif event.event == "eval":
            self.evaluations.append(replace(event, slices=None))
            if event.slices is not None:
                self.held_out = event
        elif event.event == "lost_records":
            count = event.values.get("count", 0)
            if 0 < count < math.inf:
                self.lost_records += int(count)


def find_in(path: Path, run: RunRecord, row: Row, limit: int, end: int) -> list[tuple[int, int]]:
    """Step and offset of the steps of ``row`` below ``limit`` that are not superseded.

    ``run``: the header that these steps belong to. ``end``: where the row ends in the file if it is
    the last one. ``OSError``: the file cannot be read.
    """
    limit = min(limit, row.after)
    if row.end is not None:
        end = row.end
    restarted = row.restart is not None and row.restart < limit
    return surviving_steps(path, run, row.offset, end, limit, restarted=restarted)


def steps_in(path: Path, run: RunRecord, row: Row, limit: int, end: int) -> Iterator[StepEntry]:
    """The same steps as ``find_in``, decoded one at a time. ``OSError``: the file cannot be
    read.
    """
    for _, offset in find_in(path, run, row, limit, end):
        entry = step_at(path, run, offset)
        if entry is not None:
            yield entry


_SAMPLES = 240


def preview(
    source: Source, file: RunFile, memory_bytes: int, least_bytes: int
) -> tuple[Scan, bool] | None:
    """The preview, and whether earlier steps can be sought in it; ``None`` if there is none.

    There is none of a log below ``least_bytes``, or without steps that fit its header.

    Raises:
        OSError: the file cannot be read.
        UnknownFormat: the log has another format version.
    """
    found = _samples(source, file, least_bytes)
    if found is None:
        return None
    run = found.run
    if run is None or not (samples := [e for e in found.samples if e.routers == len(run.routers)]):
        return None
    picture = Scan(lambda *_: (), memory_bytes)  # steps of samples only increase: none is cut
    picture.take(run)
    for entry in samples:
        picture.take(entry)
    picture.end = found.end
    picture.commit()
    return picture, found.monotonic


def _samples(source: Source, file: RunFile, least_bytes: int) -> Overview | None:
    if source.seekable and source.kept() == EVERYTHING:
        source.size = source.path.stat().st_size
        if source.size < least_bytes:
            return None
        return sample(source.path, file.name, _SAMPLES)
    if file.size < least_bytes:
        return None
    if lines := source.sampled(_SAMPLES):
        return sample_of(lines, file.name)
    return None
