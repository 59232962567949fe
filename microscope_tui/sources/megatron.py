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

A line holds one call of one router: ``{"step", "stage", "block", "layer", "rank", "num_tokens",
"topk", "top_indices": [[expert, …] per token], …}``, see ``megatron/core/transformer/moe/
router_trace.py``. A router is called once per micro-batch, and once more where its activations are
recomputed, with the same result.
"""

import re
import time
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Annotated

import msgspec

from microscope_tui.runlog import Tail, safe_text
from microscope_tui.sources.dumps import (
    MOST_FILES,
    Counted,
    ExactCounts,
    Late,
    Router,
    add_counts,
)
from microscope_tui.sources.keys import MAX_EXPERTS, MAX_LAYERS, Rule
from microscope_tui.sources.reader import Asked, Batch, Record, RecordReader, Unreadable, files_of

MOST_LINE_BYTES = 16 << 20
"""A longer line is refused; 100,000 tokens with 22 choices fit, and take 300 MB at most."""
MOST_CALLS = 1 << 20
"""Calls of routers in one step of one rank."""
MOST_CHOICES = 1024
MOST_BLOCKS = 64

_Natural = Annotated[int, msgspec.Meta(ge=0)]
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


class MegatronReader(RecordReader):
    """Follows a folder of traces, or one trace."""

    names = re.compile(r"router_trace_rank(\d{1,6})\.jsonl")

    @classmethod
    def begins(cls, head: bytes, own: Sequence[Rule]) -> bool:
        """See ``Reader``."""
        return head.startswith(b"{") and all(key in head for key in _KEYS)

    def __init__(self, path: Path, name: str, asked: Asked) -> None:
        super().__init__(path, name, asked)
        self._number_of_stages = asked.pipeline_parallel
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
        for path in files_of(self.path, self.names, MOST_FILES) if self.path.exists() else ():
            found = self.names.fullmatch(path.name)
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

    def _count(self, trace: "RankTrace", call: "Call") -> None:
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

    def _begin(self, summed: "StepSum") -> ExactCounts:
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
        there = {int(f[1]) for p in self._siblings() if (f := self.names.fullmatch(p.name))}
        return bool(there - set(self._ranks)) or sorted(self._ranks) != list(
            range(len(self._ranks))
        )

    def _siblings(self) -> list[Path]:
        return files_of(
            self.path if self.path.is_dir() else self.path.parent, self.names, MOST_FILES
        )

    def _state(self) -> None:
        self.report(*(trace.source for trace in self._ranks.values()))
        self.exhausted &= not self._open and not self._sums and self._failed is None


def _was_rewritten(trace: "RankTrace") -> bool:
    try:
        return trace.path.stat().st_size < trace.source.offset
    except OSError:
        return False


@dataclass(slots=True)
class StepSum:
    """One step over the ranks that have finished it."""

    counts: "dict[tuple[int, Router], array[int]]" = field(default_factory=dict)
    """By stage and router."""
    tokens: dict[tuple[int, Router], int] = field(default_factory=dict)
    routers: dict[int, frozenset[Router]] = field(default_factory=dict)
    """By rank."""
    seen: set[int] = field(default_factory=set)
    top_k: int = 0
    summed: int = 0
    """Ranks with tokens of their own."""

    def add(self, rank: int, stage: int, part: "RankStep") -> None:
        """Add what one rank traced, unless another one traced the same tokens."""
        self.routers[rank] = frozenset(part.counts)
        what = hash(frozenset(part.calls))
        if what in self.seen:
            return
        self.seen.add(what)
        self.summed += 1
        self.top_k = self.top_k or part.top_k
        for router, counts in part.counts.items():
            key = (stage, router)
            add_counts(self.counts.setdefault(key, array("q")), counts)
            self.tokens[key] = self.tokens.get(key, 0) + part.tokens[router]


class Stages:
    """The pipeline stages of a run, and where the layers of each begin."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._layers: list[tuple[int, int]] = []  # by stage: its first layer, and how many

    def of(self, rank: int, ranks: Collection[int]) -> int:
        """The stage of one of all ranks.

        Raises:
            Unreadable: the ranks do not fit the number of stages.
        """
        if self._number == 1:
            return 0
        number = len(ranks)
        if sorted(ranks) != list(range(number)) or number % self._number:
            raise Unreadable(
                f"{number} ranks do not make {self._number} pipeline stages; all ranks from 0 on "
                "must be there, and --pipeline-parallel must divide their number"
            )
        return rank // (number // self._number)

    def disagreement(self, step: int, summed: "StepSum", ranks: Collection[int]) -> str:
        """In words, if ranks of one stage traced different layers; else empty."""
        first: dict[int, tuple[int, frozenset[Router]]] = {}
        for rank, routers in sorted(summed.routers.items()):
            other, expected = first.setdefault(self.of(rank, ranks), (rank, routers))
            if routers != expected:
                return (
                    f"ranks {other} and {rank} trace different layers in step {step} "
                    f"({_shown(expected)}; {_shown(routers)}): layers are numbered within a "
                    f"pipeline stage; give --pipeline-parallel N (now {self._number})"
                )
        return ""

    def counted(self, step: int, summed: "StepSum") -> Counted:
        """The step with the layers numbered through all stages.

        Raises:
            Unreadable: a stage has more layers than in the first step.
        """
        if not self._layers:
            start = 0
            for stage in range(self._number):
                layers = [r.layer for s, r in summed.counts if s == stage and not r.mtp]
                self._layers.append((start, max(layers, default=-1) + 1))
                start += self._layers[-1][1]
        rows: dict[Router, list[int]] = {}
        tokens: dict[Router, int] = {}
        for (stage, router), counts in summed.counts.items():
            first, number = self._layers[stage]
            if not router.mtp and router.layer >= number and self._number > 1:
                raise Unreadable(
                    f"layer {router.layer} of pipeline stage {stage} appears only in step {step}: "
                    "the numbers of the layers after it are not known"
                )
            place = router if router.mtp else Router(0, first + router.layer)
            rows[place] = list(counts)
            tokens[place] = summed.tokens[stage, router]
        return Counted(step + 1, rows, tokens, summed.top_k or None)


def _shown(routers: frozenset[Router]) -> str:
    """A few names of routers."""
    names = [router.name() for router in sorted(routers)]
    return ", ".join(names if len(names) < 6 else [*names[:2], "…", *names[-2:]]) or "none"


class _Line(msgspec.Struct):
    step: Annotated[int, msgspec.Meta(ge=0, lt=2**60)]
    layer: Annotated[int, msgspec.Meta(ge=0, lt=MAX_LAYERS)]
    num_tokens: _Natural
    topk: Annotated[int, msgspec.Meta(ge=1, le=MOST_CHOICES)]
    top_indices: list[Annotated[list[_Natural], msgspec.Meta(min_length=1)]]
    block: str = "decoder"
    mtp_idx: Annotated[int, msgspec.Meta(ge=0, lt=MOST_BLOCKS)] | None = None


_decoder = msgspec.json.Decoder(_Line)


@dataclass(slots=True)
class Call:
    """One call of one router."""

    step: int
    router: Router
    """With the layer as it is numbered within the pipeline stage."""
    top_k: int
    tokens: int
    digest: bytes
    """Equal for equal choices."""
    counts: "array[int]"


@dataclass(slots=True)
class RankStep:
    """The calls of one rank in one step, each counted once."""

    counts: "dict[Router, array[int]]" = field(default_factory=dict)
    tokens: dict[Router, int] = field(default_factory=dict)
    calls: set[tuple[Router, bytes]] = field(default_factory=set)
    top_k: int = 0

    def add(self, call: "Call") -> None:
        """Count a call, unless it is a recomputation of an earlier one."""
        key = (call.router, call.digest)
        if key in self.calls:
            return
        self.calls.add(key)
        self.top_k = self.top_k or call.top_k
        self.tokens[call.router] = self.tokens.get(call.router, 0) + call.tokens
        add_counts(self.counts.setdefault(call.router, array("q")), call.counts)


class RankTrace:
    """Follows the file of one rank."""

    def __init__(self, path: Path, rank: int) -> None:
        self.path, self.rank = path, rank
        self.source = Tail(path, MOST_LINE_BYTES)
        self.step = -1
        """The step of the last line."""
        self.is_silent = False
        """It wrote nothing for so long that the others no longer wait for it."""

    def read(self, max_bytes: int) -> tuple[bool, Iterator[Call]]:
        """Whether the file is another one, and the calls in its new lines.

        Raises:
            OSError: it cannot be read now.
            Unreadable: while the calls are taken, at a line that is not of such a trace.
        """
        found = self.source.read_lines(max_bytes)
        return found.restarted, self._calls(found.lines)

    def _calls(self, lines: list[tuple[int, bytes]]) -> Iterator[Call]:
        for number, line in lines:
            if not line.strip():
                continue
            try:
                call = _call(line)
            except ValueError as error:
                why = safe_text(error, 120)
                raise self._broken(number, f"not a line of a router trace: {why}") from None
            if call.step < self.step:
                raise self._broken(
                    number,
                    f"step {call.step} after step {self.step}; two runs wrote to this file: give "
                    "each its own folder",
                )
            self.step = call.step
            yield call
        for why in self.source.defects.first:
            name = safe_text(self.path.name, 60)
            raise Unreadable(f"{name}, {why}; trace smaller micro-batches")

    def _broken(self, number: int, why: str) -> Unreadable:
        return Unreadable(f"{safe_text(self.path.name, 60)}, line {number:,}: {why}")


def _call(line: bytes) -> Call:
    """One line.

    Raises:
        ValueError: it is damaged, or contradicts itself.
    """
    try:
        record = _decoder.decode(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    rows = record.top_indices
    widths = set(map(len, rows))
    if len(rows) != record.num_tokens or not widths <= {record.topk}:
        raise ValueError(
            f"{len(rows):,} tokens with {sorted(widths)[:3]} choices, but num_tokens is "
            f"{record.num_tokens:,} and topk {record.topk}"
        )
    if record.block not in ("decoder", "mtp"):
        raise ValueError(f"block {record.block!r} is neither decoder nor mtp")
    found = Counter(chain.from_iterable(rows))
    width = max(found, default=-1) + 1
    if width > MAX_EXPERTS:
        raise ValueError(f"expert {width - 1:,}; at most {MAX_EXPERTS:,} experts are read")
    mtp = (record.mtp_idx or 0) + 1 if record.block == "mtp" else 0
    return Call(
        record.step,
        Router(mtp, record.layer),
        record.topk,
        record.num_tokens,
        blake2b(msgspec.json.encode(rows), digest_size=16).digest(),
        array("q", [found[expert] for expert in range(width)]),
    )
