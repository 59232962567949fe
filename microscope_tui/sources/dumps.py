"""Exact counts: how they are read from files that are written once each, and become records.

``DumpReader`` is for a file, or a folder in which more of them may appear. New files are read
together once none of them was written to for a moment: the ranks of a server write theirs at about
the same time. A file that changes after it was read restarts the reading.

``ExactCounts`` makes the records. The header is written after a few steps, because a router that
was not used yet looks like a dense layer. If a router or an expert appears later, another header
follows. A dump of one moment has one planned step.
"""

import os
import time
from abc import abstractmethod
from array import array
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from struct import calcsize, unpack
from typing import Any, NamedTuple

from microscope_tui import runlog
from microscope_tui.runlog import Stamp, safe_text, stamp_of
from microscope_tui.sources.keys import MAX_EXPERTS, MAX_LAYERS
from microscope_tui.sources.reader import (
    Batch,
    Record,
    RecordReader,
    SourceRequest,
    Unreadable,
    files_of,
)
from microscope_tui.sources.records import Counts, run_record, step_record

MOST_BYTES = 64 << 20
"""The longest piece read at once: as much as the longest line of a run log."""
MOST_NUMBERS = 1 << 22
"""The same in numbers: the counts of one pass of 4,096 routers with 1,024 experts."""
SETTLED_S = 1.0
"""A file that nothing was written to for this long is complete."""
MOST_FILES = 4096
"""Files of a folder that are read; a dump has one per rank."""
LOOK_AHEAD = 8
"""Steps that are collected before the header is written."""
_TURN_S = 0.05
_PIECE = 1 << 20


class Bytes:
    """An open file whose parts are read at any place; a part that is not in it is an error.

    The owner of the descriptor ``file`` closes it.
    """

    def __init__(self, file: int, name: str) -> None:
        self.file = file
        self.name = safe_text(name, 60)
        """Shown in messages."""
        self.size = os.fstat(file).st_size

    def read(self, offset: int, length: int, what: str) -> bytes:
        """``length`` bytes from ``offset``; ``what`` names them in the message.

        ``Unreadable``: they are not all inside the file, or are too many.
        """
        if length > MOST_BYTES:
            raise self.broken(
                f"{what}: {length:,} bytes, at most {MOST_BYTES:,} are read; is it damaged?"
            )
        if offset < 0 or length < 0 or offset + length > self.size:
            raise self.broken(
                f"{what} at {offset:,} is not inside the {self.size:,} bytes; copy the file again"
            )
        data = os.pread(self.file, length, offset)
        if len(data) != length:
            raise self.broken(f"{what}: the file became shorter while it was read")
        return data

    def numbers(self, offset: int, code: str, number: int, what: str) -> list[Any]:
        """So many numbers from ``offset``, by their ``code`` of ``struct``; see ``read``."""
        if number > MOST_NUMBERS:
            raise self.broken(f"{what}: more than {MOST_NUMBERS:,} numbers")
        layout = f"<{number}{code}"
        return list(unpack(layout, self.read(offset, calcsize(layout), what)))

    def pieces(self, start: int, end: int, what: str) -> Iterator[bytes]:
        """All bytes to before ``end``, a megabyte at a time; see ``read``."""
        for at in range(start, end, _PIECE):
            yield self.read(at, min(_PIECE, end - at), what)

    def broken(self, why: str) -> Unreadable:
        """An error, to be raised, that names the file; ``why`` is shown as it is."""
        return Unreadable(f"{self.name}: {why}")


@contextmanager
def opened(path: Path) -> Iterator[Bytes]:
    """The bytes of ``path`` while the context is open.

    ``OSError``: it cannot be opened, or is not a regular file.
    """
    with runlog.opened(path) as file:
        yield Bytes(file, path.name)


class Late(Exception):
    """A new file belongs to what was already returned: read everything again."""


class CountsReader(RecordReader):
    """What comes before damage is returned before the damage is raised."""

    def __init__(self, path: Path, name: str, request: SourceRequest) -> None:
        super().__init__(path, name, request)
        self._start()

    def _start(self) -> None:
        self._run: ExactCounts | None = None
        self._failed: Unreadable | None = None
        """Why nothing follows what was returned."""

    def _begin(self, writer: str, **header: Any) -> "ExactCounts":
        self._run = ExactCounts(self._name, writer, self._request, **header)
        return self._run

    def _flush(self) -> Iterator[Record]:
        return iter(()) if self._run is None else self._run.flush()


class DumpReader(CountsReader):
    """Reads records from whole files."""

    def __init__(self, path: Path, name: str, request: SourceRequest) -> None:
        self._seen: dict[Path, tuple[Stamp, float]] = {}  # when a version was seen first
        super().__init__(path, name, request)

    def _start(self) -> None:
        super()._start()
        self._versions: dict[Path, Stamp] = {}  # of the files that were read or are being read
        self._records: Iterator[tuple[float, Record]] | None = None
        self._before = self._reading = self.offset = 0  # bytes of the files before, and of these
        self._lost = False  # a read failed in the middle

    @abstractmethod
    def _read_files(self, paths: Sequence[Path]) -> Iterator[tuple[float, Record]]:
        """The records of new files, each with the share of the work that is done.

        Raises:
            Unreadable: a file is damaged or hostile.
            Late: one of them should have been read with the files before; all are read again.
        """

    def read(self, max_bytes: int = 1 << 20) -> Batch:
        found = self._look()
        changed = any(found.get(path, old) != old for path, old in self._versions.items())
        changed = changed or self._lost
        if changed:
            self._start()
        if self._failed is not None:
            raise self._failed
        records: list[Record] = []
        try:
            self._next(found, records, max_bytes)
        except Unreadable as why:
            self._failed = why
            records += self._flush()
            if not records:
                raise
        except OSError:
            self._lost = True  # what was read so far cannot be continued
            raise
        except Late:
            self._start()
            changed = True
            records = []
        unread = any(path not in self._versions for path in found)
        self.exhausted = not unread and self._records is None and self._failed is None
        return Batch(records, changed)

    def _next(self, found: dict[Path, Stamp], records: list[Record], max_bytes: int) -> None:
        if self._records is None:
            new = {path: version for path, version in found.items() if path not in self._versions}
            if not new or not all(self._is_settled(path) for path in new):
                return
            self._versions |= new
            self._reading = sum(version.size for version in new.values())
            self._records = self._all_of(list(new))
        end = time.monotonic() + _TURN_S
        until = self.offset + max_bytes
        for done, record in self._records:
            self.offset = self._before + int(done * self._reading)
            records.append(record)
            if time.monotonic() > end or self.offset >= until:
                return
        self._records = None
        self._before = self.offset = self._before + self._reading

    def _all_of(self, paths: Sequence[Path]) -> Iterator[tuple[float, Record]]:
        yield from self._read_files(paths)
        for record in self._flush():
            yield 1.0, record

    def _look(self) -> dict[Path, Stamp]:
        paths = files_of(self.path, self.names, MOST_FILES + 1)
        if len(paths) > MOST_FILES:
            raise Unreadable(
                f"{safe_text(self.path.name)}: more than {MOST_FILES:,} files; move older ones away"
            )
        found: dict[Path, Stamp] = {}
        for path in paths:
            with suppress(FileNotFoundError):
                found[path] = stamp_of(path.stat())
        before, self._seen = self._seen, {}
        for path, version in found.items():
            old, since = before.get(path, (None, 0.0))
            if old != version:
                since = time.monotonic()
            self._seen[path] = version, since
        self.size = sum(version.size for version in found.values())
        if found:
            self.modified = max(version.modified_ns for version in found.values()) / 1e9
        self.deleted = not found and bool(self._versions)
        return found

    def _is_settled(self, path: Path) -> bool:
        version, since = self._seen[path]
        age = time.time() - version.modified_ns / 1e9
        return max(age, time.monotonic() - since) >= SETTLED_S

    @contextmanager
    def _opened(self, path: Path) -> Iterator[Bytes]:
        """The bytes of a file; ``OSError`` if it is not the one that was found: read it again."""
        with opened(path) as data:
            if stamp_of(os.fstat(data.file)) != self._versions.get(path):
                raise OSError(f"{data.name} changed while it was read")
            yield data


class Router(NamedTuple):
    """A router, in forward order."""

    mtp: int
    """Number of the multi-token prediction block, from 1; 0 in the decoder."""
    layer: int
    """0-based depth; inside a prediction block, the layer of the block."""

    def name(self) -> str:
        """As the screen shows it: ``L3``, or ``mtp.0`` in a layer of multi-token prediction."""
        if not self.mtp:
            return f"L{self.layer}"
        if not self.layer:
            return f"mtp.{self.mtp - 1}"
        return f"mtp.{self.mtp - 1}.{self.layer}"


@dataclass(slots=True)
class Counted:
    """What one step of a dump counted."""

    step: int
    rows: Mapping[Router, Counts]
    """Tokens per expert; routers without any are absent. Rows may be of different lengths."""
    tokens: Mapping[Router, int] = field(default_factory=dict)
    """Tokens that each router saw, where that is known."""
    top_k: int | None = None


class ExactCounts:
    """Makes the records of a run from counts: header, steps, and the end.

    A header needs the number of routers and experts, so the first ``LOOK_AHEAD`` steps wait.
    """

    def __init__(
        self,
        run: str,
        writer: str,
        request: SourceRequest,
        *,
        top_k: int | None = None,
        num_experts: int = 0,
        is_live: bool = False,
        is_whole: bool = False,
        **header: Any,
    ) -> None:
        """``request`` wins over the others; ``header``: see ``run_record``.

        ``is_live``: one step alone is not all there is; ``is_whole``: the run ends with what is
        read.
        """
        self._request = request
        self._header_facts = {"counts": "exact", **header, "run": run, "writer": writer}
        if request.profile:
            self._header_facts["profile"] = request.profile
        self._is_live, self._is_whole = is_live, is_whole
        self._top_k = request.top_k or top_k
        self._num_experts = request.num_experts or num_experts
        self._width = 0  # experts seen
        self._routers: set[Router] = set()
        self._order: list[Router] = []
        self._waiting: deque[Counted] = deque()
        self._started = self._is_moment = False

    def add(self, counted: Counted) -> Iterator[Record]:
        """The records that one more step gives; none until the header can be written.

        ``Unreadable``: there are more routers or experts than the limits allow.
        """
        grown = self._grow(counted)
        if not self._started:
            self._waiting.append(counted)
            if len(self._waiting) >= LOOK_AHEAD:
                yield from self._waited()
            return
        if grown or self._is_moment:
            self._is_moment = False
            yield self._header()
        yield self._record(counted)

    def flush(self) -> Iterator[Record]:
        """The records that are left when everything was read, and the end of a finished run."""
        yield from self._waited()
        if self._is_moment or self._is_whole:
            yield {"kind": "event", "event": "end", "reason": "finished"}

    def _waited(self) -> Iterator[Record]:
        if self._waiting and not self._started:
            self._started = True
            is_one = len(self._waiting) == 1 and not self._is_live
            self._is_moment = is_one and self._header_facts["profile"] == "eval"
            yield self._header()
        while self._waiting:
            yield self._record(self._waiting.popleft())

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
        if self._request.num_experts and self._width > self._request.num_experts:
            raise Unreadable(
                f"expert {self._width - 1} was chosen, but --num-experts is "
                f"{self._request.num_experts}; give the number of routed experts of a layer"
            )
        if (len(self._routers), self._experts, self._top_k) == before:
            return False
        self._order = sorted(self._routers)
        return True

    @property
    def _experts(self) -> int:
        return max(self._width, self._num_experts)

    def _header(self) -> Record:
        depths = [router.layer for router in self._order if not router.mtp]
        deepest = max(depths, default=-1)
        depths += [deepest + router.mtp for router in self._order if router.mtp]  # they come last
        planned = None
        if self._is_moment:
            planned = 1
        return run_record(
            depths=depths,
            experts=[self._experts] * len(depths),
            top_k=self._top_k or self._request.confirmed_top_k,
            names=[router.name() for router in self._order],
            planned_steps=planned,
            **self._header_facts,
        )

    def _record(self, counted: Counted) -> Record:
        rows = [self._row(counted.rows.get(router)) for router in self._order]
        seen: list[float | None] = [counted.tokens.get(router) for router in self._order]
        known = dict.fromkeys(tokens for tokens in seen if tokens is not None)
        router = {}
        if len(known) > 1:
            router = {"tokens": seen}
        return step_record(counted.step, rows, tokens=next(iter(known), None), router=router)

    def _row(self, row: Counts | None) -> Sequence[int] | None:
        if row is None:
            return None
        return [*row, *[0] * (self._experts - len(row))]


def misses_ranks(reader: RecordReader, ranks: Collection[int]) -> bool:
    """Whether a rank is missing in ``ranks``: by their numbers, or by the files beside this one.

    The names of the files have the group ``rank``; where it is empty, the rank is 0.
    """
    there: set[int] = set()
    if reader.names is not None and not reader.path.is_dir():
        beside = files_of(reader.path.parent, reader.names, MOST_FILES)
        found = [reader.names.fullmatch(file.name) for file in beside]
        there = {int(match["rank"] or 0) for match in found if match}
    return not there <= set(ranks) or set(ranks) != set(range(len(ranks)))


def counts_of_choices(chosen: Iterable[int]) -> list[int]:
    """How often each expert was chosen, from expert 0 to the highest one that was."""
    found = Counter(chosen)
    return [found[expert] for expert in range(max(found, default=-1) + 1)]


def add_counts(total: "list[int] | array[int]", counts: Sequence[int]) -> None:
    """Add counts per expert; ``total`` grows as needed."""
    if len(counts) > len(total):
        total.extend([0] * (len(counts) - len(total)))
    for expert, count in enumerate(counts):
        total[expert] += count


def by_logical(rows: Sequence[Sequence[int]], logical: Sequence[Sequence[int]]) -> list[list[int]]:
    """Counts of physical experts as those of logical ones, which may have several copies."""
    width = 1 + max(max(row) for row in logical)
    found = [[0] * width for _ in rows]
    for row, experts, summed in zip(rows, logical, found, strict=True):
        if any(row):
            for count, expert in zip(row, experts, strict=True):
                summed[expert] += count
    return found


def routed(rows: Iterable[Sequence[int]]) -> dict[Router, Counts]:
    """Rows of counts by router, for rows from layer 0 on; a row of zeros is left out."""
    return {Router(0, layer): row for layer, row in enumerate(rows) if any(row)}


def tokens_of(rows: Mapping[Router, Counts], top_k: int | None) -> dict[Router, int]:
    """The tokens that each router saw, where its counts are those of whole tokens."""
    return {
        router: sum(row) // top_k
        for router, row in rows.items()
        if top_k and sum(row) % top_k == 0 and max(row) * top_k <= sum(row)
    }
