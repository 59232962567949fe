"""Router traces of Megatron-LM as a run: exact counts per step, over all ranks.

``--moe-routing-trace-path DIR`` writes ``router_trace_rank{R}.jsonl``. Micro-batches of a step are
summed; so are ranks, but those that traced the same tokens (tensor-parallel siblings) count once.
A step is complete when every rank is past it, or when nothing is written any more.

Layers are numbered *within a pipeline stage*. Ranks that traced different layers are therefore
refused, unless ``pipeline_parallel`` gives the number of stages. Then the ranks are split into
that many equal groups in their order, as Megatron does by default, and each stage continues the
numbers of the one before; a stage whose last layer is dense makes the next ones too low. Stages
with equal layers cannot be distinguished from data-parallel ranks, nor the chunks of a virtual
pipeline from micro-batches: the header notes that.

A line holds one call of one router (``megatron/core/transformer/moe/router_trace.py``): one per
micro-batch, and one more with the same result where its activations are recomputed.
"""

import re
import time
from array import array
from collections.abc import Iterator, Sequence
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
    CountsReader,
    ExactCounts,
    Late,
    Router,
    add_counts,
    counts_of_choices,
    misses_ranks,
)
from microscope_tui.sources.keys import MAX_EXPERTS, MAX_LAYERS, Rule
from microscope_tui.sources.reader import Batch, Record, Unreadable, files_of
from microscope_tui.sources.step_rows import COMPLETE_AFTER_S

MOST_LINE_BYTES = 16 << 20
"""A longer line is refused; 100,000 tokens with 22 choices fit, and take 300 MB at most."""
MOST_CALLS = 1 << 20
"""Calls of routers in one step of one rank."""
MOST_CHOICES = 1024
MOST_BLOCKS = 64

_Natural = Annotated[int, msgspec.Meta(ge=0)]
_Expert = Annotated[int, msgspec.Meta(ge=0, lt=MAX_EXPERTS)]
LAG_S = 10.0
"""A rank that has not reached the last step is no longer waited for after this long."""
_AHEAD = 4  # steps that one rank is read before the others
_PIECE = 1 << 18
_KEYS = (b'"step"', b'"layer"', b'"num_tokens"', b'"topk"', b'"top_indices"')
ONE_RANK = "one rank of several; open the folder of the trace for all ranks"
WIDTH = "the number of experts is that of the highest one chosen; --num-experts sets it"
STAGES = "the ranks count as one pipeline stage; if that is wrong, give --pipeline-parallel"


class _Line(msgspec.Struct):
    step: Annotated[int, msgspec.Meta(ge=0, lt=2**60)]
    layer: Annotated[int, msgspec.Meta(ge=0, lt=MAX_LAYERS)]
    num_tokens: _Natural
    topk: Annotated[int, msgspec.Meta(ge=1, le=MOST_CHOICES)]
    top_indices: list[Annotated[list[_Expert], msgspec.Meta(min_length=1)]]
    block: str = "decoder"
    mtp_idx: Annotated[int, msgspec.Meta(ge=0, lt=MOST_BLOCKS)] | None = None

    def __post_init__(self) -> None:
        rows, widths = self.top_indices, set(map(len, self.top_indices))
        if len(rows) != self.num_tokens or not widths <= {self.topk}:
            raise ValueError(
                f"{len(rows):,} tokens with {sorted(widths)[:3]} choices, but num_tokens is "
                f"{self.num_tokens:,} and topk {self.topk}"
            )
        if self.block not in ("decoder", "mtp"):
            raise ValueError(f"block {self.block!r} is neither decoder nor mtp")

    @property
    def router(self) -> Router:
        """With the layer as it is numbered within the pipeline stage."""
        return Router((self.mtp_idx or 0) + 1 if self.block == "mtp" else 0, self.layer)


_decoder = msgspec.json.Decoder(_Line)


@dataclass(slots=True)
class RankStep:
    """The calls of one rank in one step, each counted once."""

    counts: "dict[Router, array[int]]" = field(default_factory=dict)
    tokens: dict[Router, int] = field(default_factory=dict)
    calls: set[tuple[Router, bytes]] = field(default_factory=set)
    """With a digest that is equal for equal choices."""
    top_k: int = 0

    def add(self, line: _Line) -> None:
        """Count a call, unless it is a recomputation of an earlier one."""
        digest = blake2b(msgspec.json.encode(line.top_indices), digest_size=16).digest()
        router = line.router
        if (router, digest) in self.calls:
            return
        self.calls.add((router, digest))
        self.top_k = self.top_k or line.topk
        self.tokens[router] = self.tokens.get(router, 0) + line.num_tokens
        row = counts_of_choices(chain.from_iterable(line.top_indices))
        add_counts(self.counts.setdefault(router, array("q")), row)


class RankTrace:
    """The file of one rank, read as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source = Tail(path, MOST_LINE_BYTES)
        self.step = -1
        """The step of the last line."""
        self.is_silent = False
        """It wrote nothing for so long that the others no longer wait for it."""

    def calls(self, lines: list[tuple[int, bytes]]) -> Iterator[_Line]:
        """The calls in new lines, which are pairs of line number and content.

        ``Unreadable``, while they are taken: a line is not of such a trace, or its step is smaller
        than the one before.
        """
        for number, line in lines:
            if not line.strip():
                continue
            try:
                call = _decoder.decode(line)
            except (ValueError, RecursionError) as error:
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


class MegatronReader(CountsReader):
    """Follows a folder of traces, or one trace."""

    names = re.compile(r"router_trace_rank(?P<rank>\d{1,6})\.jsonl")

    @classmethod
    def begins(cls, head: bytes, own: Sequence[Rule]) -> bool:
        return head.startswith(b"{") and all(key in head for key in _KEYS)

    def _start(self) -> None:
        super()._start()
        self._ranks: dict[int, RankTrace] = {}
        self._steps: dict[int, dict[int, RankStep]] = {}  # not yet returned; by step and rank
        self._returned = -1  # the last step that was returned
        self._stages: list[tuple[int, int]] = []  # of each the first layer, and how many
        self._grew = time.monotonic()

    def read(self, max_bytes: int = 1 << 20) -> Batch:
        """The records of the steps that all ranks have written.

        If a rank began its file anew, everything is read again from the start. ``Unreadable``: a
        file is damaged, from then on; the steps before it were returned.
        """
        records: list[Record] = []
        earlier = self._failed
        try:
            if earlier is None:
                self._find()
                self._take(max_bytes)
                self._complete(records)
        except Late:
            self._start()
            self.exhausted = False
            return Batch((), True)
        except Unreadable as why:
            self._failed = why
        if self._failed is not earlier:
            records += self._flush()
        if self._failed is not None and not records:
            raise self._failed
        self.report(*(trace.source for trace in self._ranks.values()))
        self.exhausted &= not self._steps and self._failed is None
        return Batch(records)

    def _find(self) -> None:
        for path in files_of(self.path, self.names, MOST_FILES) if self.path.exists() else ():
            found = self.names.fullmatch(path.name)
            rank = int(found[1]) if found else 0
            if rank not in self._ranks:
                self._ranks[rank] = RankTrace(path)

    def _take(self, max_bytes: int) -> None:
        """Read from the ranks that are furthest behind; ``Late`` if a file is another one."""
        left = max_bytes
        todo = set(self._ranks)
        while left > 0 and todo:
            rank = min(todo, key=lambda rank: (self._ranks[rank].step, rank))
            trace = self._ranks[rank]
            if trace.step > self._behind() + _AHEAD:
                return
            before = trace.source.offset
            found = trace.source.read_lines(min(left, _PIECE))
            if found.restarted:
                raise Late
            try:
                for call in trace.calls(found.lines):
                    self._count(rank, call)
            except Unreadable as why:
                self._failed = why  # the steps before it are returned first
                return
            if trace.source.offset == before:
                todo.remove(rank)
            else:
                left -= trace.source.offset - before
                self._grew = time.monotonic()

    def _behind(self) -> int:
        return min((t.step for t in self._ranks.values() if not t.is_silent), default=-1)

    def _count(self, rank: int, call: _Line) -> None:
        if call.step <= self._returned:
            raise Late
        trace = self._ranks[rank]
        trace.is_silent = False
        part = self._steps.setdefault(call.step, {}).setdefault(rank, RankStep())
        part.add(call)
        if len(part.calls) > MOST_CALLS:
            raise Unreadable(
                f"{safe_text(trace.path.name, 60)}: more than {MOST_CALLS:,} calls in step "
                f"{call.step}; is it a router trace?"
            )

    def _complete(self, records: list[Record]) -> None:
        records += self._until(self._behind())  # keeps those before an error
        if self._failed is not None:
            return
        traces = self._ranks.values()
        modified = max((trace.source.modified or 0.0 for trace in traces), default=0.0)
        quiet = max(time.time() - modified, time.monotonic() - self._grew)
        if not all(trace.source.exhausted for trace in traces) or quiet < COMPLETE_AFTER_S:
            return
        last = max((trace.step for trace in traces), default=-1)
        lags = any(trace.step < last for trace in traces if not trace.is_silent)
        if quiet < LAG_S and (lags or self._disagreement(last)):
            return
        for trace in traces:
            trace.is_silent = trace.step < last
        records += self._until(last, last=last)
        records += self._flush()

    def _until(self, end: int, last: int | None = None) -> Iterator[Record]:
        for step in sorted(self._steps):
            if step >= end and step != last:
                break
            why = self._disagreement(step)
            parts = self._steps.pop(step)
            interrupted = step == last and self._returned >= 0
            if why and not interrupted:
                raise Unreadable(why)
            self._returned = step
            if why:
                continue
            counted, ranks = self._counted(step, parts)
            run = self._run or self._run_of(ranks)
            yield from run.add(counted)

    def _stage_of(self, rank: int) -> int:
        """The pipeline stage of a rank; raises ``Unreadable`` if the ranks do not fit them."""
        number, stages = len(self._ranks), self._request.pipeline_parallel
        if stages == 1:
            return 0
        if sorted(self._ranks) != list(range(number)) or number % stages:
            raise Unreadable(
                f"{number} ranks do not make {stages} pipeline stages; all ranks from 0 on "
                "must be there, and --pipeline-parallel must divide their number"
            )
        return rank // (number // stages)

    def _disagreement(self, step: int) -> str:
        """In words, if ranks of one stage traced different layers; else empty."""
        first: dict[int, tuple[int, set[Router]]] = {}
        for rank, part in sorted(self._steps.get(step, {}).items()):
            routers = set(part.counts)
            other, expected = first.setdefault(self._stage_of(rank), (rank, routers))
            if routers != expected:
                return (
                    f"ranks {other} and {rank} trace different layers in step {step} "
                    f"({_shown(expected)}; {_shown(routers)}): layers are numbered within a "
                    f"pipeline stage; give --pipeline-parallel N (now "
                    f"{self._request.pipeline_parallel})"
                )
        return ""

    def _counted(self, step: int, parts: dict[int, RankStep]) -> tuple[Counted, int]:
        """The sum over ranks, layers numbered through all stages; the number of ranks summed."""
        if not self._stages:
            self._number_stages(parts)
        total: dict[Router, list[int]] = {}
        tokens: dict[Router, int] = {}
        seen: set[frozenset[tuple[Router, bytes]]] = set()
        for rank, part in parts.items():
            calls = frozenset(part.calls)
            if calls in seen:
                continue  # a sibling, which traced the same tokens
            seen.add(calls)
            stage = self._stage_of(rank)
            first, number = self._stages[stage]
            for router, counts in part.counts.items():
                if not router.mtp and router.layer >= number and len(self._stages) > 1:
                    raise Unreadable(
                        f"layer {router.layer} of pipeline stage {stage} appears only in step "
                        f"{step}: the numbers of the layers after it are not known"
                    )
                place = router if router.mtp else Router(0, first + router.layer)
                add_counts(total.setdefault(place, []), counts)
                tokens[place] = tokens.get(place, 0) + part.tokens[router]
        top_k = next((part.top_k for part in parts.values()), None)
        return Counted(step + 1, total, tokens, top_k), len(seen)

    def _number_stages(self, parts: dict[int, RankStep]) -> None:
        start = 0
        for stage in range(self._request.pipeline_parallel):
            of_stage = (part for rank, part in parts.items() if self._stage_of(rank) == stage)
            layers = [router.layer for part in of_stage for router in part.counts if not router.mtp]
            self._stages.append((start, max(layers, default=-1) + 1))
            start += self._stages[-1][1]

    def _run_of(self, ranks: int) -> ExactCounts:
        notes = []
        alone = misses_ranks(self, self._ranks)
        if alone:
            notes.append(ONE_RANK)
        elif ranks > 1 and self._request.pipeline_parallel == 1:
            notes.append(STAGES)
        if not self._request.num_experts:
            notes.append(WIDTH)
        counts = "local_rank" if alone else "exact"
        return self._begin("megatron", profile="pretrain", counts=counts, note="; ".join(notes))


def _shown(routers: set[Router]) -> str:
    names = [router.name() for router in sorted(routers)]
    return ", ".join(names if len(names) < 6 else [*names[:2], "…", *names[-2:]]) or "none"
