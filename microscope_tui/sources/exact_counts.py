"""Exact counts per router become records: the header, then a record for each step.

The header is written after a few steps, because a router that was not used yet cannot be told from
a dense layer. If a router or an expert appears later, another header follows. A dump of one moment
plans one step, and is judged by it.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from microscope_tui.runlog import safe_text
from microscope_tui.sources.header import Asked, run_record
from microscope_tui.sources.keys import MAX_EXPERTS, MAX_LAYERS
from microscope_tui.sources.reader import Record, Unreadable
from microscope_tui.sources.steps import Counts, step_record

LOOK_AHEAD = 8
"""Steps that are collected before the header is written."""


class Router(NamedTuple):
    """A router, in forward order."""

    mtp: int
    """Number of the multi-token prediction block, from 1; 0 in the decoder."""
    layer: int
    """0-based depth; inside a prediction block, the layer of the block."""

    def name(self) -> str:
        """As the screen shows it."""
        if not self.mtp:
            return f"L{self.layer}"
        return f"mtp.{self.mtp - 1}" + (f".{self.layer}" if self.layer else "")


@dataclass(slots=True)
class Counted:
    """The counts of one step."""

    step: int
    rows: Mapping[Router, Counts]
    """Tokens per expert; routers without any are absent. Rows may be of different lengths."""
    tokens: Mapping[Router, int] = field(default_factory=dict)
    """Tokens that each router saw, where that is known."""
    top_k: int | None = None


class ExactCounts:
    """Makes the records of one run."""

    def __init__(
        self,
        run: str,
        writer: str,
        asked: Asked,
        *,
        profile: str,
        counts: str = "exact",
        top_k: int | None = None,
        num_experts: int = 0,
        note: str = "",
        time: float | None = None,
    ) -> None:
        """``asked`` wins over the other arguments, which are those of ``run_record``."""
        self._run, self._writer, self._asked = run, writer, asked
        self._profile, self._counts, self._time = asked.profile or profile, counts, time
        self.note = note
        self._top_k = asked.top_k or top_k
        self._num_experts = asked.num_experts or num_experts
        self._width = 0  # experts seen
        self._routers: set[Router] = set()
        self._order: list[Router] = []
        self._waiting: deque[Counted] = deque()
        self._started = self._is_moment = False

    def add(self, counted: Counted) -> Iterator[Record]:
        """The records that one more step gives.

        Raises:
            Unreadable: more routers or experts than there can be.
        """
        grown = self._grow(counted)
        if not self._started:
            self._waiting.append(counted)
            if len(self._waiting) >= LOOK_AHEAD:
                yield from self.flush()
            return
        if grown or self._is_moment:
            self._is_moment = False
            yield self._header()
        yield self._record(counted)

    def flush(self) -> Iterator[Record]:
        """The records of the steps that still wait for the header."""
        if self._waiting and not self._started:
            self._started = True
            self._is_moment = self._profile == "eval" and len(self._waiting) == 1
            yield self._header()
        while self._waiting:
            yield self._record(self._waiting.popleft())
        if self._is_moment:
            yield {"kind": "event", "event": "end", "reason": "finished"}

    def _grow(self, counted: Counted) -> bool:
        before = len(self._routers), self._experts, self._top_k
        self._routers.update(counted.rows)
        self._width = max([self._width, *map(len, counted.rows.values())])
        self._top_k = self._top_k or counted.top_k
        if len(self._routers) > MAX_LAYERS or self._experts > MAX_EXPERTS:
            raise Unreadable(
                f"{len(self._routers):,} routers with {self._experts:,} experts; at most "
                f"{MAX_LAYERS:,} with {MAX_EXPERTS:,} are read"
            )
        if self._asked.num_experts and self._width > self._asked.num_experts:
            raise Unreadable(
                f"expert {self._width - 1} was chosen, but there are said to be "
                f"{self._asked.num_experts}; give the number of routed experts of a layer"
            )
        if (len(self._routers), self._experts, self._top_k) == before:
            return False
        self._order = sorted(self._routers)
        return True

    @property
    def _experts(self) -> int:
        return max(self._width, self._num_experts)

    def _header(self) -> Record:
        deepest = max((router.layer for router in self._order if not router.mtp), default=-1)
        depths = [deepest + router.mtp if router.mtp else router.layer for router in self._order]
        return run_record(
            self._run,
            depths,
            [self._experts] * len(depths),
            self._top_k,
            names=[router.name() for router in self._order],
            writer=self._writer,
            counts=self._counts,
            profile=self._profile,
            time=self._time,
            note=safe_text(self.note, 200),
            planned_steps=1 if self._is_moment else None,
        )

    def _record(self, counted: Counted) -> Record:
        rows = [self._row(counted.rows.get(router)) for router in self._order]
        seen = [counted.tokens.get(router) for router in self._order]
        known = [tokens for tokens in seen if tokens is not None]
        alike = len(set(known)) == 1
        per_router: list[float | None] = list(seen)
        return step_record(
            counted.step,
            rows,
            tokens=known[0] if known else None,
            router={} if alike or not known else {"tokens": per_router},
        )

    def _row(self, row: Counts | None) -> Sequence[int] | None:
        return None if row is None else [*row, *[0] * (self._experts - len(row))]
