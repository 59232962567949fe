"""Router traces of Megatron-LM as a run: exact counts per step, over all ranks.

``--moe-routing-trace-path DIR`` writes ``router_trace_rank{R}.jsonl``. Micro-batches of a step are
summed; so are ranks, but those that traced the same tokens (tensor-parallel siblings) count once.
A step is complete when every rank is past it, or when nothing is written any more.

Layers are numbered *within a pipeline stage*. Ranks that traced different layers are therefore
refused, unless ``pipeline_parallel`` says how many stages there are. Then the ranks are split into
that many equal groups in their order, as Megatron does by default, and each stage continues the
numbers of the one before; a stage whose last layer is dense makes the next ones too low. Stages
with equal layers cannot be told from data-parallel ranks, nor the chunks of a virtual pipeline from
micro-batches: the header says so.
"""

import re
import time
from collections.abc import Iterator
from pathlib import Path

from microscope_tui.runlog import safe_text
from microscope_tui.sources.dumps import MOST_FILES, Late, begins_with, candidates
from microscope_tui.sources.exact_counts import ExactCounts
from microscope_tui.sources.header import Asked
from microscope_tui.sources.reader import Batch, Record, RecordReader, Unreadable
from microscope_tui.sources.router_trace import MOST_CALLS, Call, RankStep, RankTrace
from microscope_tui.sources.traced_steps import Stages, StepSum

NAMES = re.compile(r"router_trace_rank(\d{1,6})\.jsonl")
COMPLETE_AFTER_S = 0.4
"""The last step is complete if nothing was written for this long and all ranks have reached it."""
LAG_S = 10.0
"""A rank that has not reached it is no longer waited for after this long."""
_AHEAD = 4  # steps that one rank is read before the others
_PIECE = 1 << 18
_KEYS = (b'"step"', b'"layer"', b'"num_tokens"', b'"topk"', b'"top_indices"')
ONE_RANK = "one rank of several; open the folder of the trace for all ranks"
WIDTH = "the number of experts is the largest that was chosen; --num-experts says it exactly"
STAGES = "the ranks count as one pipeline stage; if that is wrong, give --pipeline-parallel"


def recognises(path: Path) -> bool:
    """Whether it is such a trace, or a folder with one."""
    for file in candidates(path, NAMES):
        head = begins_with(file)
        if head.startswith(b"{") and all(key in head for key in _KEYS):
            return True
    return False


class MegatronReader(RecordReader):
    """Follows a folder of traces, or one trace."""

    def __init__(self, path: Path, name: str, asked: Asked) -> None:
        """``name``: of the run; ``asked``: E, and the number of pipeline stages."""
        super().__init__()
        self.path = path
        self._name, self._asked, self._number_of_stages = name, asked, asked.pipeline_parallel
        self._start()

    def _start(self) -> None:
        self._ranks: dict[int, RankTrace] = {}
        self._open: dict[int, tuple[int, RankStep]] = {}  # what a rank is writing, by rank
        self._sums: dict[int, StepSum] = {}
        self._returned = -1  # the last step that was returned
        self._run: ExactCounts | None = None
        self._stages = Stages(self._number_of_stages)
        self._grew = time.monotonic()
        self._failed: Unreadable | None = None

    def read(self, max_bytes: int = 1 << 20) -> Batch:
        """See ``RecordReader``."""
        restarted = False
        records: list[Record] = []
        if self._failed is None:
            try:
                self._find()
                restarted = self._take(max_bytes)
                if self._failed is None:
                    self._complete(records)
                else:
                    self._append(self._until(self._behind()), records)
            except Late:
                restarted = True
            except Unreadable as why:
                self._failed = why
            if self._failed is not None and self._run is not None:
                records += self._run.flush()
        elif any(map(_was_rewritten, self._ranks.values())):
            restarted = True
        if restarted:
            self._start()
            self.exhausted = False
            return Batch((), True)
        if self._failed is not None and not records:
            raise self._failed
        self._state()
        return Batch(records)

    def _find(self) -> None:
        """Notice ranks that are new in the folder."""
        for path in candidates(self.path, NAMES, MOST_FILES) if self.path.exists() else ():
            found = NAMES.fullmatch(path.name)
            rank = int(found[1]) if found else 0
            if rank not in self._ranks:
                self._ranks[rank] = RankTrace(path, rank)

    def _take(self, max_bytes: int) -> bool:
        """Read from the ranks that are furthest behind; true if a file is another one."""
        left, todo = max_bytes, set(self._ranks)
        while left > 0 and todo:
            rank = min(todo, key=lambda rank: (self._ranks[rank].step, rank))
            trace = self._ranks[rank]
            if trace.step > self._behind() + _AHEAD:
                return False
            before = trace.source.offset
            restarted, calls = trace.read(min(left, _PIECE))
            if restarted:
                return True
            try:
                for call in calls:
                    self._count(trace, call)
            except Unreadable as why:
                self._failed = why  # the steps before it are returned first
                return False
            if trace.source.offset == before:
                todo.remove(rank)
            else:
                left -= trace.source.offset - before
                self._grew = time.monotonic()
        return False

    def _behind(self) -> int:
        """The lowest step that a rank is writing."""
        return min((t.step for t in self._ranks.values() if not t.is_silent), default=-1)

    def _count(self, trace: RankTrace, call: Call) -> None:
        if call.step <= self._returned:
            raise Late
        trace.is_silent = False
        step, part = self._open.get(trace.rank, (call.step, RankStep()))
        if step != call.step:
            self._close(trace.rank)
            part = RankStep()
        self._open[trace.rank] = (call.step, part)
        part.add(call)
        if len(part.calls) > MOST_CALLS:
            raise Unreadable(
                f"{safe_text(trace.path.name, 60)}: more than {MOST_CALLS:,} calls in step "
                f"{call.step}; is it a router trace?"
            )

    def _close(self, rank: int) -> None:
        step, part = self._open.pop(rank)
        self._sums.setdefault(step, StepSum()).add(rank, self._stages.of(rank, self._ranks), part)

    def _complete(self, records: list[Record]) -> None:
        """Append the records of the steps that are complete."""
        self._append(self._until(self._behind()), records)
        traces = self._ranks.values()
        quiet = self._quiet_for()
        if not all(trace.source.exhausted for trace in traces) or quiet < COMPLETE_AFTER_S:
            return
        last = max((trace.step for trace in traces), default=-1)
        lags = any(trace.step < last for trace in traces if not trace.is_silent)
        if quiet < LAG_S and (lags or not self._is_even(last)):
            return
        for trace in traces:
            trace.is_silent = trace.step < last
        for rank in list(self._open):
            self._close(rank)
        self._append(self._until(last, last=last), records)
        if self._run is not None:
            records += self._run.flush()

    @staticmethod
    def _append(found: Iterator[Record], records: list[Record]) -> None:
        for record in found:  # those before an error are kept
            records.append(record)

    def _is_even(self, step: int) -> bool:
        """Whether the ranks of a stage traced the same layers in a step that is still open."""
        routers = {
            (self._stages.of(rank, self._ranks), frozenset(part.counts))
            for rank, (at, part) in self._open.items()
            if at == step
        }
        return len(routers) == len({stage for stage, _ in routers})

    def _quiet_for(self) -> float:
        modified = max((t.source.modified or 0.0 for t in self._ranks.values()), default=0.0)
        return max(time.time() - modified, time.monotonic() - self._grew)

    def _until(self, end: int, last: int | None = None) -> Iterator[Record]:
        """The records of the steps before ``end``, and of the step ``last``."""
        for step in sorted(self._sums):
            if step >= end and step != last:
                break
            summed = self._sums.pop(step)
            interrupted = step == last and self._returned >= 0
            why = self._stages.disagreement(step, summed, self._ranks)
            if why and not interrupted:
                raise Unreadable(why)
            self._returned = step
            if why:
                continue
            counted = self._stages.counted(step, summed)
            if self._run is None:
                self._run = self._begin(summed)
            yield from self._run.add(counted)

    def _begin(self, summed: StepSum) -> ExactCounts:
        notes = []
        alone = self._misses_ranks()
        if alone:
            notes.append(ONE_RANK)
        elif summed.summed > 1 and self._number_of_stages == 1:
            notes.append(STAGES)
        if not self._asked.num_experts:
            notes.append(WIDTH)
        return ExactCounts(
            self._name,
            "megatron",
            self._asked,
            profile="pretrain",
            counts="local_rank" if alone else "exact",
            note="; ".join(notes),
        )

    def _misses_ranks(self) -> bool:
        there = {int(f[1]) for p in self._siblings() if (f := NAMES.fullmatch(p.name))}
        return bool(there - set(self._ranks)) or sorted(self._ranks) != list(
            range(len(self._ranks))
        )

    def _siblings(self) -> list[Path]:
        return candidates(self.path if self.path.is_dir() else self.path.parent, NAMES, MOST_FILES)

    def _state(self) -> None:
        sources = [trace.source for trace in self._ranks.values()]
        self.offset = sum(source.offset for source in sources)
        self.size = sum(source.size for source in sources)
        self.modified = max((s.modified for s in sources if s.modified is not None), default=None)
        self.deleted = bool(sources) and all(source.deleted for source in sources)
        read = all(source.exhausted for source in sources)
        self.exhausted = read and not self._open and not self._sums and self._failed is None


def _was_rewritten(trace: RankTrace) -> bool:
    try:
        return trace.path.stat().st_size < trace.source.offset
    except OSError:
        return False
