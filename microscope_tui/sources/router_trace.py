"""The router trace of one rank of Megatron-LM: which experts each token chose, line by line.

A line holds one call of one router: ``{"step", "stage", "block", "layer", "rank", "num_tokens",
"topk", "top_indices": [[expert, …] per token], …}``, see ``megatron/core/transformer/moe/
router_trace.py``. A router is called once per micro-batch, and once more where its activations are
recomputed, with the same result.
"""

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Annotated

import msgspec

from microscope_tui.runlog import LineSplitter, LogFollower, safe_text
from microscope_tui.sources.exact_counts import Router
from microscope_tui.sources.keys import MAX_EXPERTS, MAX_LAYERS
from microscope_tui.sources.reader import Unreadable

MOST_LINE_BYTES = 16 << 20
"""A longer line is refused; 100,000 tokens with 22 choices fit, and take 300 MB at most."""
MOST_CALLS = 1 << 20
"""Calls of routers in one step of one rank."""
MOST_CHOICES = 1024
MOST_BLOCKS = 64

_Natural = Annotated[int, msgspec.Meta(ge=0)]


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

    def add(self, call: Call) -> None:
        """Count a call, unless it is a recomputation of an earlier one."""
        key = (call.router, call.digest)
        if key in self.calls:
            return
        self.calls.add(key)
        self.top_k = self.top_k or call.top_k
        self.tokens[call.router] = self.tokens.get(call.router, 0) + call.tokens
        add_counts(self.counts.setdefault(call.router, array("q")), call.counts)


def add_counts(total: "array[int]", counts: "array[int]") -> None:
    """Add counts per expert; ``total`` grows as needed."""
    if len(counts) > len(total):
        total.extend([0] * (len(counts) - len(total)))
    for expert, count in enumerate(counts):
        total[expert] += count


class RankTrace:
    """Follows the file of one rank."""

    def __init__(self, path: Path, rank: int) -> None:
        self.path, self.rank = path, rank
        self.source = LogFollower(path, MOST_LINE_BYTES)
        self.step = -1
        """The step of the last line."""
        self.is_silent = False
        """It wrote nothing for so long that the others no longer wait for it."""
        self._lines = LineSplitter(MOST_LINE_BYTES)

    def read(self, max_bytes: int) -> tuple[bool, Iterator[Call]]:
        """Whether the file is another one, and the calls in its new lines.

        Raises:
            OSError: it cannot be read now.
            Unreadable: while the calls are taken, at a line that is not of such a trace.
        """
        chunk = self.source.read(max_bytes)
        return chunk.restarted, self._calls(chunk.data)

    def _calls(self, data: bytes) -> Iterator[Call]:
        for number, line in self._lines.feed(data):
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
        if self._lines.overlong:
            raise self._broken(
                self._lines.overlong[0],
                f"longer than {MOST_LINE_BYTES >> 20} MB; trace smaller micro-batches",
            )

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
